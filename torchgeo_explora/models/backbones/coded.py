"""Backbones whose tokens carry a code in addition to their position."""

from collections.abc import Mapping, Sequence
from math import isqrt
from os import PathLike
from typing import Any

import torch
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torchvision.models._api import WeightsEnum

from torchgeo_explora.functional import resize_grid, sincos_2d
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.tokens import check_size, pair
from torchgeo_explora.models.checkpoints import (
    fold_class_code,
    fuse_qkv,
    read_state,
    split_qkv,
)
from torchgeo_explora.models.formats.dinov3 import refuse_rotary
from torchgeo_explora.models.formats.fingerprint import fingerprint
from torchgeo_explora.models.heads.mae_decoder import mae_blocks

# Parts of a plain ViT that are different in a coded backbone.
_EMBEDDINGS = ('patch_embed.', 'pos_embed')


class CodedBackbone(Backbone):
    """The blocks of a plain ViT with embeddings that a plain ViT does not have.

    Of the D values that are added to a token, the first D - E hold its position in the
    image, the last E a code of another kind: spectral group or time (SatMAE, Cong et
    al., https://arxiv.org/abs/2207.08051). Position and code start as sin-cos tables
    and can be trained. The position table has a row for the class token, which starts
    at zero; the class token has no code.

    A subclass builds `patch_embed` and what its code needs.

    Args:
        arguments: As for `Backbone`.
        in_channels: C, channels of an image.
        image_size: Training size in pixels.
        patch_size: Pixels along each side of a patch.
        embed_dim: D, width of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width of a block's hidden layer, relative to D.
        code_dim: E, width of the code.
        code: Name of the argument that sets this width, for the error.

    Raises:
        ValueError: If a width or a size does not fit.
    """

    #: Modules and parameters that differ in a plain ViT, or do not exist there.
    own: tuple[str, ...] = ('patch_embed', 'pos_embed')

    def __init__(
        self,
        arguments: Mapping[str, Any],
        in_channels: int,
        image_size: int | Sequence[int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        code_dim: int,
        code: str,
    ) -> None:
        """Build blocks, class token and position table."""
        size = pair(image_size)
        check_size(size, patch_size)
        if embed_dim % num_heads:
            raise ValueError(
                f'*embed_dim* {embed_dim} is not a multiple of *num_heads* {num_heads}'
            )
        if not 0 < code_dim < embed_dim or (embed_dim - code_dim) % 4:
            raise ValueError(
                f'*{code}* {code_dim} leaves {embed_dim - code_dim} of embed_dim'
                f' {embed_dim} for the position, which needs a positive multiple of 4:'
                f' choose {embed_dim // 48 * 12 or 12}, for instance'
            )
        shared = {
            'image_size': size,
            'patch_size': patch_size,
            'embed_dim': embed_dim,
            'depth': depth,
            'num_heads': num_heads,
            'mlp_ratio': mlp_ratio,
            code: code_dim,
        }
        super().__init__(
            {**arguments, **shared}, embed_dim, patch_size, in_channels, size
        )
        self.code_dim = code_dim
        # Like MAE, SatMAE gives the class token no target.
        self.pooling = 'mean'
        self.record.untrained = self.own
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        table = sincos_2d(self.grid, embed_dim - code_dim)
        # The class token's row is zero: (h * w, D - E) -> (1, 1 + h * w, D - E)
        self.pos_embed = nn.Parameter(nn.functional.pad(table, (0, 0, 1, 0))[None])
        self.blocks = mae_blocks(depth, embed_dim, num_heads, mlp_ratio)
        self.norm = LayerNorm(embed_dim)

    @property
    def drawn(self) -> tuple[str, ...]:
        """Modules with random values although the rest of the base was loaded.

        The sin-cos tables are not among them: they always start with the same values.
        """
        if self.record.fingerprint is None:
            return ()
        return tuple(name for name in self.record.untrained if name == 'patch_embed')

    def prefix(self) -> Tensor:
        """Return the class token with its position and no code, (1, 1, D)."""
        return self.cls_token + nn.functional.pad(
            self.pos_embed[:, :1], (0, self.code_dim)
        )

    def position(self, grid: tuple[int, int]) -> Tensor:
        """Return the position of patches on a grid (h, w), (1, h * w, D - E)."""
        return resize_grid(self.pos_embed[:, 1:], grid, offset=0.1, source=self.grid)

    def start_from(self, weights: WeightsEnum | PathLike[str] | str) -> None:
        """Load weights of this kind of backbone, or of a plain ViT of its size.

        Args:
            weights: Whatever `checkpoints.read_state` takes except True: a path, an
                enum or its name, the name of a timm model.

        Raises:
            FileNotFoundError: If the weights are not on disk and cannot be downloaded.
            RuntimeError: If the weights do not fit; all misfits are listed.
            ValueError: If they are of a rotary model.
        """
        state, self.record.extras = read_state(weights, '')
        refuse_rotary(state, weights)
        table, token = state.get('pos_embed'), state.get('cls_token')
        if table is None or token is None or table.shape[-1] == token.shape[-1]:
            self.load_transformer(state)
        else:
            self.load_state_dict(fold_class_code(state))

    def load_transformer(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Load the blocks, the final norm and the class token of a plain ViT.

        The class token absorbs its row of the position table. The patch embedding is
        loaded if it has the same shape. The fingerprint is that of the plain ViT.

        Args:
            state: All tensors of the plain ViT, under timm's names.

        Returns:
            Modules and parameters without fitting weights in the plain ViT; they keep
            their values.

        Raises:
            RuntimeError: If blocks, norm or class token do not fit, or if the ViT has
                parts that would be lost, such as LayerScale; all misfits are listed.
        """
        published = fuse_qkv(state)
        taken = _transformer(published)
        mine = self.state_dict()
        embedding = {k: v for k, v in published.items() if k.startswith('patch_embed.')}
        fits = embedding.keys() == {k for k in mine if k.startswith('patch_embed.')}
        if fits and all(v.shape == mine[k].shape for k, v in embedding.items()):
            taken |= embedding
        untrained = tuple(
            name
            for name in self.own
            if not any(key.partition('.')[0] == name for key in taken)
        )
        kept = {k: v for k, v in mine.items() if k.partition('.')[0] in untrained}
        nn.Module.load_state_dict(self, {**kept, **split_qkv(taken)})
        self.record.untrained = untrained
        self.record.fingerprint = fingerprint(published)
        return untrained

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Load weights of this kind of backbone, as `Backbone` does."""
        keys = super().load_state_dict(state_dict, strict, assign)
        if not keys.missing_keys:
            self.record.untrained = ()
        return keys

    def _fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        table = state.get('pos_embed')
        if table is None or table.shape[1] == self.pos_embed.shape[1]:
            return state
        patches = resize_grid(table[:, 1:].float(), self.grid)
        return state | {'pos_embed': torch.cat([table[:, :1].float(), patches], dim=1)}


def _transformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a plain ViT's tensors without embeddings; the class token has a position.

    The position is the class token's row of the table.
    """
    taken = {k: v for k, v in state.items() if not k.startswith(_EMBEDDINGS)}
    table = state.get('pos_embed')
    # A table without a row for the class token has a square number of rows.
    if table is not None and isqrt(table.shape[1]) ** 2 != table.shape[1]:
        row = table[:, :1].float()
        taken |= {k: v.float() + row for k, v in taken.items() if k == 'cls_token'}
    return taken
