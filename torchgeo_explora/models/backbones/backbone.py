"""The contract of every backbone, and the parts that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as FusedAttention
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, autocast, cat, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils.checkpoint import checkpoint

from torchgeo_explora.functional.autocast import under_autocast
from torchgeo_explora.models.formats.fingerprint import fingerprint
from torchgeo_explora.models.formats.names import fuse_qkv, split_qkv


class Tokens(NamedTuple):
    """Patch tokens of a batch, with content and position apart."""

    content: Tensor
    """(B, N, D) patch embeddings without position."""
    position: Tensor
    """(1 or B, N, D), to be added to the content."""
    grid: tuple[int, int, int]
    """(groups or times or 1, h, w); N is the product."""


class Features(NamedTuple):
    """Output of a backbone after the final norm, registers dropped."""

    cls: Tensor
    """(B, D)."""
    patch: Tensor
    """(B, K, D), in the order of the tokens encoded; (M, D) where M were *wanted*."""


class Attention(nn.Module):
    """timm's self-attention with its fused `qkv` as three Linears, same output.

    Adapters can then be put on the query and value projections by name.

    Args:
        fused: timm's attention, whose weights are copied and whose norms are taken.
    """

    def __init__(self, fused: FusedAttention) -> None:
        """Copy the rows of *fused* that belong to each projection."""
        super().__init__()
        self.num_heads = fused.num_heads
        self.dropout = fused.attn_drop.p
        self.q, self.k, self.v = _split(fused.qkv)
        self.q_norm = fused.q_norm
        self.k_norm = fused.k_norm
        self.norm = fused.norm
        self.proj = fused.proj
        self.proj_drop = fused.proj_drop

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return tokens (B, N, D) that have attended to one another.

        Args:
            x: Tokens, (B, N, D).
            attn_mask: As in `torch.nn.functional.scaled_dot_product_attention`: bool,
                True where a token may look, or float, added to the scores.
            is_causal: Whether a token sees only those before it.
        """
        x = _cast_once(x)
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )  # (B, N, D) -> (B, heads, N, D / heads)
        dropout = self.dropout if self.training else 0.0
        x = _attend(self.q_norm(q), self.k_norm(k), v, attn_mask, dropout, is_causal)
        x = x.transpose(1, 2).flatten(2)  # -> (B, N, D)
        return self.proj_drop(self.proj(self.norm(x)))

    def of_rows(self, x: Tensor, keep: Tensor, index: Tensor) -> Tensor:
        """Return what `forward` does, of chosen tokens alone.

        All tokens are keys and values; queries, and what follows, are made of the
        chosen ones.

        Args:
            x: Tokens, (B, N, D).
            keep: (B, N) bool, True for the R chosen tokens.
            index: (R,), where they stand in `x.flatten(0, 1)`, on its device.

        Returns:
            (R, D), image by image.
        """
        x = _cast_once(x)
        images, _, width = x.shape
        count = keep.sum(1)
        longest = max(int(count.max()), 1)
        # Each image's queries stand at the start of a row of the longest's length.
        place = torch.arange(longest, device=keep.device) < count[:, None]
        slot = place.flatten().nonzero().squeeze(1).to(x.device)
        q = self.q(x.flatten(0, 1)[index])  # (R, D)
        q = q.new_zeros(images * longest, width).index_copy(0, slot, q)
        q, k, v = (
            part.view(images, -1, self.num_heads, width // self.num_heads)
            for part in (q, self.k(x), self.v(x))
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        found = _attend(self.q_norm(q), self.k_norm(k), v, None, dropout, False)
        found = found.transpose(1, 2).flatten(2).flatten(0, 1)[slot]  # (R, D)
        return self.proj_drop(self.proj(self.norm(found)))


def _cast_once(x: Tensor) -> Tensor:
    """Return what autocast would make of *x* for each projection, and keep of it."""
    if not under_autocast(x):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """Return what each query (B, heads, N, D / heads) reads from the values."""
    if q.device.type != 'cpu':
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    # On a CPU torch's backward in bfloat16 takes 2 to 8 times as long as in float32.
    with autocast('cpu', enabled=False):
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        x = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), mask, dropout, causal
        )
    return x.to(v.dtype)


class Backbone(nn.Module, ABC):
    """A Vision Transformer as `embed` and `encode`.

    Self-supervised methods differ between the two calls only: iBOT replaces content
    before the position is added, MAE drops tokens after it. A backbone knows neither.

    A subclass sets `norm_pre`, `blocks` and `norm`, whose attention layers are
    `Attention`, and writes `embed`, `patchify` and `prefix`.

    Args:
        arguments: The constructor's arguments as plain values, without weights:
            `type(backbone)(**backbone.arguments)` is the same architecture.
        embed_dim: D, width of a token.
        patch_size: Pixels along each side of a patch.
        in_channels: C, channels of an image.
        image_size: Height and width in pixels that the position table stands for.
    """

    norm_pre: nn.Module
    blocks: nn.Sequential
    norm: nn.Module
    fingerprint: str | None
    """SHA-256 of the last complete base given to `load_state_dict`, None before."""
    checkpointing: bool
    """Whether a block keeps its input alone for the gradient, and works twice."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        embed_dim: int,
        patch_size: int,
        in_channels: int,
        image_size: tuple[int, int],
    ) -> None:
        """Keep what describes the backbone; the subclass builds it."""
        super().__init__()
        self.arguments = dict(arguments)
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.image_size = image_size
        self.fingerprint = None
        self.checkpointing = False

    @abstractmethod
    def embed(self, image: Tensor, **metadata: Tensor) -> Tokens:
        """Return the patch tokens of an image, content and position apart.

        Args:
            image: Normalised pixels, (B, C, H, W).
            **metadata: What else the backbone knows of the image, such as dates.

        Raises:
            ValueError: If the number of channels or the image size does not fit.
        """

    @abstractmethod
    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of an image as (B, N, P), in the order of `embed`."""

    @abstractmethod
    def prefix(self) -> Tensor:
        """Return the special tokens with their position, (1, S, D), class token first.

        They stand before the patch tokens in every block.
        """

    def encode(self, tokens: Tensor, wanted: Tensor | None = None) -> Features:
        """Return the features of patch tokens that already carry their position.

        Args:
            tokens: (B, K, D), any subset of an image's tokens in any order.
            wanted: (B, K) bool, True where features are wanted, the class token's
                always; all if None. The last block then works on these alone: up to
                rounding, `encode(tokens).patch[wanted]`. On any device: on the CPU,
                nothing waits for an accelerator.
        """
        x = self._start(tokens)
        if wanted is None:
            return self._read(self._through(self.blocks, x), tokens.shape[1])
        x = self._through(self.blocks[:-1], x)
        special = x.shape[1] - tokens.shape[1]
        keep = F.pad(wanted, (special, 0))
        keep[:, 0] = True
        index = keep.flatten().nonzero().squeeze(1)  # (R,), image by image
        first = index % x.shape[1] == 0
        cls, patch = (
            chosen.nonzero().squeeze(1).to(x.device) for chosen in (first, ~first)
        )
        rows = self.norm(_rows_of_block(self.blocks[-1], x, keep, index.to(x.device)))
        return Features(rows[cls], rows[patch])

    def forward(
        self, image: Tensor, wanted: Tensor | None = None, **metadata: Tensor
    ) -> Features:
        """Return the features of an image (B, C, H, W), all patches visible.

        Args:
            image: Normalised pixels, (B, C, H, W).
            wanted: As for `encode`.
            **metadata: As for `embed`.
        """
        content, position, _ = self.embed(image, **metadata)
        return self.encode(content + position, wanted)

    def features(
        self, image: Tensor, blocks: Sequence[int], **metadata: Tensor
    ) -> list[Features]:
        """Return what chosen blocks put out, each after the final norm.

        Args:
            image: Normalised pixels, (B, C, H, W).
            blocks: Indices of blocks, from 0; negative ones count from the end.
            **metadata: As for `embed`.

        Returns:
            One entry per index of `blocks`, in that order.

        Raises:
            IndexError: If an index is out of range.
        """
        depth = len(self.blocks)
        if any(not -depth <= index < depth for index in blocks):
            raise IndexError(
                f'*blocks* {list(blocks)} must be within -{depth}..{depth - 1}'
            )
        wanted = [index % depth for index in blocks]
        content, position, _ = self.embed(image, **metadata)
        x = self._start(content + position)
        found: dict[int, Features] = {}
        for index, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = block(x)
            if index in wanted:
                found[index] = self._read(x, content.shape[1])
        return [found[index] for index in wanted]

    def canonical_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under their published names, with fused `attn.qkv`.

        Tensors that need no fusing share their memory with the parameters.

        Raises:
            RuntimeError: If adapters are present: their weights have no such name.
        """
        if self._adapted:
            raise RuntimeError(
                'the backbone carries adapters, which have no published names:'
                ' call canonical_state_dict on adapt.merged(backbone)'
            )
        return fuse_qkv(self.state_dict())

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Load weights with fused or split attention, and record what they were.

        The fingerprint is taken of the tensors as given, before any of them is resized,
        cast or split, and only where they are a whole base: a delta or an adapted state
        leaves it as it was.

        Args:
            state_dict: Tensors in published names, or in this module's own.
            strict: Whether missing and unexpected keys are an error.
            assign: As in `torch.nn.Module.load_state_dict`.

        Returns:
            The missing and the unexpected keys, both empty if strict.

        Raises:
            RuntimeError: If keys or shapes do not fit; all of them are listed.
        """
        published = fuse_qkv(state_dict)
        fitted = split_qkv(self._fitted(published))
        keys = super().load_state_dict(fitted, strict, assign)
        if not (keys.missing_keys or keys.unexpected_keys or self._adapted):
            self.fingerprint = fingerprint(published)
        return keys

    def _fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state with what depends on the image size made to fit."""
        return state

    @property
    def _adapted(self) -> bool:
        # Every tuner layer of PEFT keeps the layer it replaces under this name.
        return any(hasattr(module, 'base_layer') for module in self.modules())

    def _start(self, tokens: Tensor) -> Tensor:
        prefix = self.prefix().expand(len(tokens), -1, -1)
        return self.norm_pre(cat([prefix, tokens], dim=1))  # -> (B, S + K, D)

    def _through(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return blocks(x)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def _read(self, x: Tensor, count: int) -> Features:
        x = self.norm(x)  # (B, S + K, D)
        return Features(x[:, 0], x[:, x.shape[1] - count :])


def compile_blocks(module: nn.Module) -> None:
    """Compile all transformer blocks in *module*, in place.

    Their shapes are those of the views. What follows them depends on how many patches
    are masked, and is left as it is.
    """
    for block in module.modules():
        if isinstance(block, Block):
            block.compile(fullgraph=True, dynamic=False)


def _rows_of_block(block: Any, x: Tensor, keep: Tensor, index: Tensor) -> Tensor:
    """Return the rows of `block(x)` that *keep* chooses, (R, D): see `of_rows`."""
    if block.training and isinstance(block.drop_path1, DropPath):
        # It drops whole images, which rows on their own do not know.
        return block(x).flatten(0, 1)[index]
    rows = x.flatten(0, 1)[index]
    rows = rows + block.ls1(block.attn.of_rows(block.norm1(x), keep, index))
    return rows + block.ls2(block.mlp(block.norm2(rows)))


def _split(fused: nn.Linear) -> list[nn.Linear]:
    """Return the thirds of a Linear's rows as Linears of their own."""
    layers = []
    for index, weight in enumerate(fused.weight.detach().chunk(3)):
        # On the meta device no numbers are drawn that would be thrown away: a seed
        # gives the same weights as timm's own constructor.
        rows, columns = weight.shape
        layer = nn.Linear(columns, rows, fused.bias is not None, device='meta')
        layer.weight = nn.Parameter(weight.clone())
        if fused.bias is not None:
            layer.bias = nn.Parameter(fused.bias.detach().chunk(3)[index].clone())
        layers.append(layer)
    return layers


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size given as one number or as both."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def check_size(size: tuple[int, int], patch_size: int) -> None:
    """Raise ValueError unless patches fill an image of this height and width."""
    # Whole numbers: an export for any image size follows this test symbolically.
    if any(side % patch_size for side in size) or min(size) < patch_size:
        fit = tuple(max(round(side / patch_size), 1) * patch_size for side in size)
        raise ValueError(
            f'image size {tuple(size)} is not a multiple of patch_size {patch_size}:'
            f' crop or pad to {fit}'
        )
