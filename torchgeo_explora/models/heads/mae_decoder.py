"""The decoder of a masked autoencoder: from visible tokens to all pixels."""

from collections.abc import Mapping
from math import isqrt, prod
from typing import Any

import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from torchgeo_explora.functional import (
    patch_statistics,
    resize_grid,
    scatter_tokens,
    sincos_2d,
    unpatchify,
)
from torchgeo_explora.models.backbones.attention import Attention
from torchgeo_explora.models.backbones.record import Record
from torchgeo_explora.models.backbones.tokens import Features
from torchgeo_explora.models.formats.names import split_qkv

_PUBLISHED = 'decoder_'
# Parts that depend on the pixels and the kind of tokens, not on the blocks.
_ENDS = ('pos_embed', 'channel_embed', 'pred')


class MAEDecoder(nn.Module):
    """Decoder of MAE: a small ViT that sees all tokens and predicts their pixels.

    Rows of pixels are laid out as by the backbone's `patchify`. Position codes are
    fixed sin-cos tables. Weights can be loaded under MAE's names (`decoder_*`,
    `mask_token`) or the module's own, with fused or split attention.

    Reference: He et al., *MAE*, https://arxiv.org/abs/2111.06377, section 3.

    Args:
        embed_dim: Width of the backbone's tokens.
        in_channels: C, channels of an image.
        patch_size: p, pixels along each side of a patch.
        grid: Patches along height and width, for which the position table is made.
        dim: Width of the decoder.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Width of a block's hidden layer, relative to the decoder's.
        code_dim: Part of the width that is reserved for a code other than the position.

    Raises:
        ValueError: If the widths do not fit together.
    """

    def __init__(
        self,
        embed_dim: int,
        in_channels: int,
        patch_size: int,
        grid: tuple[int, int],
        dim: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        code_dim: int = 0,
    ) -> None:
        """Initialise as MAE does."""
        super().__init__()
        if dim % heads:
            raise ValueError(f'*decoder_dim* {dim} is not a multiple of {heads} heads')
        if not code_dim < dim or (dim - code_dim) % 4:
            raise ValueError(
                f'*decoder_dim* {dim} leaves {dim - code_dim} next to a code of'
                f' {code_dim} for the position, which needs a positive multiple of 4'
            )
        self.record = Record()
        self.patch_size = patch_size
        self.grid = grid
        self.code_dim = code_dim
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        table = sincos_2d(grid, dim - code_dim)
        # The class token's row is zero: (h * w, D - C) -> (1, 1 + h * w, D - C)
        table = nn.functional.pad(table, (0, 0, 1, 0))[None]
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = mae_blocks(depth, dim, heads, mlp_ratio)
        self.norm = LayerNorm(dim)
        self.pred: nn.Module = nn.Linear(dim, in_channels * patch_size**2)
        start_as_mae(self.embed)
        start_as_mae(self.pred)

    @torch.no_grad()
    def read_from(self, norm: nn.Module) -> None:
        """Scale a new decoder's input to the size of its position codes.

        The last norm of a trained backbone may have any weights, such as values near 4.
        Tokens of that size would drown the position codes, whose size is fixed, and a
        hidden token would take long to find its neighbours.

        Args:
            norm: The backbone's last norm; if its weights are 1, nothing changes.
        """
        weight = getattr(norm, 'weight', None)
        if weight is not None:
            self.embed.weight /= weight.square().mean().sqrt()

    def forward(
        self,
        features: Features,
        index: Tensor,
        grid: tuple[int, int, int],
        metadata: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the predicted pixels of all tokens, (B, N, P).

        Args:
            features: The backbone's features of the visible tokens.
            index: Indices of the visible tokens among the N tokens, (B, K).
            grid: (groups or times or 1, h, w); N is the product.
            metadata: As for the backbone's `embed`.
        """
        visible = self.embed(features.patch)
        tokens = scatter_tokens(visible, index, self.mask_token, prod(grid))
        place, code = self.pos_embed[:, :1], self.class_code()
        cls = self.embed(features.cls).unsqueeze(1) + torch.cat([place, code], dim=-1)
        tokens = tokens + self.position(grid, self.code(metadata))
        x = self.blocks(torch.cat([cls, tokens], dim=1))
        return self.predict(self.norm(x)[:, 1:])

    def code(self, metadata: Mapping[str, Tensor]) -> Tensor:
        """Return the code of each group or time, (1 or B, G or T, C); here C is 0."""
        return self.pos_embed.new_empty(1, 1, 0)

    def class_code(self) -> Tensor:
        """Return the code of the class token, (1, 1, C)."""
        return self.pos_embed.new_zeros(1, 1, self.code_dim)

    def position(self, grid: tuple[int, int, int], code: Tensor) -> Tensor:
        """Return the position of each token, followed by its code, (1 or B, N, D).

        Args:
            grid: (groups or times or 1, h, w).
            code: As `code` returns it.
        """
        place = resize_grid(self.pos_embed[:, 1:], grid[1:], source=self.grid)
        places = place.unsqueeze(1).expand(*code.shape[:2], -1, -1)
        codes = code.unsqueeze(2).expand(-1, -1, place.shape[1], -1)
        return torch.cat([places, codes], dim=-1).flatten(1, 2)

    def predict(self, x: Tensor) -> Tensor:
        """Return the pixels (B, N, P) of tokens (B, N, D) after the final norm."""
        return self.pred(x)

    def statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation that normalise pixels (`norm_pix`).

        Args:
            rows: (B, N, P), NaN where unknown.

        Returns:
            (B, N, 1) each.
        """
        return patch_statistics(rows)

    def unpacked(self, rows: Tensor) -> Tensor:
        """Return rows of pixels (B, N, P) in the published layout."""
        return rows

    def pixels(self, rows: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Return the image made of rows of pixels (B, N, P)."""
        return unpatchify(rows, self.patch_size, grid=grid[1:])

    def start_from(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Load the parts of a published decoder that fit.

        Blocks, norm, mask token and first layer must fit. Codes and the prediction
        layer stay new if the weights were made for other pixels or tokens, such as an
        RGB MAE for spectral groups. New codes do not need training, since they are
        fixed.

        Args:
            state: The rest that `from_mae` and similar functions return.

        Returns:
            Names of the parts that must be trained: ('pred',) or ().

        Raises:
            ValueError: If widths or depth differ.
        """
        state = self._fitted(state)
        mine = self.state_dict()
        shapes = {key: value.shape for key, value in state.items()}
        new = {
            key.partition('.')[0]
            for key, value in mine.items()
            if key.startswith(_ENDS) and shapes.get(key) != value.shape
        }
        given = {k: v for k, v in state.items() if k.partition('.')[0] not in new}
        kept = {k: v for k, v in mine.items() if k.partition('.')[0] in new}
        self.load_state_dict(given | kept)
        return ('pred',) if 'pred' in new else ()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Load a decoder under published names or this module's own.

        A position table for another grid is resized. Other published tensors, such as
        a classifier's, are ignored.

        Raises:
            RuntimeError: If *strict*, and keys are missing or unexpected.
            ValueError: If widths or depth differ.
        """
        state = self._fitted(state_dict)
        self._check_size(state)
        return super().load_state_dict(state, strict, assign)

    def _fitted(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the state under this module's names, on its grid."""
        if any(key.startswith(_PUBLISHED) for key in state):
            state = {
                key.removeprefix(_PUBLISHED): value
                for key, value in state.items()
                if key.startswith((_PUBLISHED, 'mask_token'))
            }
        fitted = split_qkv(state)
        table = fitted.get('pos_embed')
        if table is not None and table.shape[1] != self.pos_embed.shape[1]:
            side = isqrt(table.shape[1] - 1)
            patches = resize_grid(table[:, 1:], self.grid, source=(side, side))
            fitted['pos_embed'] = torch.cat([table[:, :1], patches], dim=1)
        return fitted

    def _check_size(self, state: Mapping[str, Tensor]) -> None:
        found, here = _sizes(state), _sizes(self.state_dict())
        if found and found != here:
            raise ValueError(
                f'the decoder weights are {found}, this decoder is {here}: set'
                ' *decoder_dim*, *decoder_depth* and *decoder_mlp_ratio* to those of'
                ' the weights'
            )


def _sizes(state: Mapping[str, Tensor]) -> str:
    """Return the sizes of a decoder in words, or '' if there is no decoder."""
    if 'embed.weight' not in state:
        return ''
    dim, width = state['embed.weight'].shape
    depth = len({key.split('.')[1] for key in state if key.startswith('blocks.')})
    hidden = state.get('blocks.0.mlp.fc1.bias')
    ratio = '' if hidden is None else f', MLP {len(hidden)} wide,'
    return f'{dim} wide, {depth} blocks deep{ratio} for a backbone {width} wide'


def mae_blocks(depth: int, dim: int, heads: int, mlp_ratio: float) -> nn.Sequential:
    """Return new blocks with `Attention`, initialised as in MAE.

    Args:
        depth: Number of blocks.
        dim: D, width of a token.
        heads: Attention heads.
        mlp_ratio: Width of a block's hidden layer, relative to D.
    """
    blocks = [Block(dim, heads, mlp_ratio, qkv_bias=True) for _ in range(depth)]
    for block in blocks:
        start_as_mae(block)
        host: Any = block
        host.attn = Attention(host.attn)
    return nn.Sequential(*blocks)


def start_as_mae(module: nn.Module) -> None:
    """Initialise linear and convolution layers as MAE does."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            # A patch embedding is a linear layer on the pixels of a patch.
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
