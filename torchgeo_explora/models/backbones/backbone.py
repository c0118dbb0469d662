"""The interface of every backbone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, cat, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils.checkpoint import checkpoint
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models.backbones.record import Record
from torchgeo_explora.models.backbones.tokens import Features, Pooling, Tokens
from torchgeo_explora.models.formats.fingerprint import fingerprint
from torchgeo_explora.models.formats.names import fuse_qkv, split_qkv
from torchgeo_explora.models.heads.mae_decoder import MAEDecoder

#: Public names of this package leave out the module.
PACKAGE = 'torchgeo_explora.models'


class Backbone(nn.Module, ABC):
    """A Vision Transformer as `embed` and `encode`.

    Self-supervised methods differ only between the two calls: iBOT replaces content
    and keeps the positions, MAE drops tokens with their positions. A backbone does not
    know the method, and a method does not know what a position is.

    A subclass sets `blocks`, `norm` and, if there is one, `norm_pre`; its attention
    layers have their projections as `q`, `k` and `v`. It implements `embed`,
    `patchify`, `prefix` and `start_from`. If positions are not added to the content, it
    overrides `enter`. Once the class is defined, files can name it (`kind`), and its
    backbones are built from them with the arguments that its constructor names.

    Args:
        arguments: The constructor's arguments as plain values, without weights:
            `type(backbone)(**backbone.arguments)` is the same architecture.
        embed_dim: D, width of a token.
        patch_size: Pixels along each side of a patch.
        in_channels: C, channels of an image.
        image_size: Height and width in pixels that the position table covers.

    Attributes:
        arguments: As above.
        record: Where the weights come from, and what `adapt` did to them.
        bands: Names of the channels, if the backbone knows them.
        value_range: (low, high) of the sensor values that were mapped to [0, 1] when
            the base was trained, each with one value per channel; None if unknown.
        mean: Mean of the images that the base was trained on, in [0, 1], by channel.
        std: Standard deviation, by channel.
        pooling: A task's default pooling: 'mean' if the base was trained by masked
            autoencoding, which leaves the class token without a target.
        layers: Tokens at each place of the grid, one for each group of bands; all
            tokens of the first group come first, then those of the next.
        checkpointing: Whether activations are recomputed in the backward pass, so that
            a block stores only its input.
    """

    norm_pre: nn.Module
    blocks: nn.Sequential
    norm: nn.Module
    #: Arguments that a file may give in addition to those the constructor names.
    file_arguments: ClassVar[tuple[str, ...]] = ()
    _kinds: ClassVar[dict[str, type['Backbone']]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class, so that files can name it."""
        super().__init_subclass__(**kwargs)
        Backbone._kinds[cls.public_name()] = cls

    def __init__(
        self,
        arguments: Mapping[str, Any],
        embed_dim: int,
        patch_size: int,
        in_channels: int,
        image_size: tuple[int, int],
    ) -> None:
        """Store the description of the backbone; the subclass builds it."""
        super().__init__()
        self.arguments = dict(arguments)
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.image_size = image_size
        self.norm_pre = nn.Identity()
        self.record = Record()
        self.bands: tuple[str, ...] | None = None
        self.value_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self.mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
        self.std: tuple[float, ...] = IMAGENET_DEFAULT_STD
        self.pooling: Pooling = 'cls'
        self.layers = 1
        self.checkpointing = False

    @classmethod
    def public_name(cls) -> str:
        """Return the name of the class in files, without the module if it is ours."""
        home = PACKAGE if cls.__module__.startswith(f'{PACKAGE}.') else cls.__module__
        return f'{home}.{cls.__qualname__}'

    @staticmethod
    def kind(name: str) -> type['Backbone'] | None:
        """Return the class of backbone that a file names; None if there is none.

        Nothing is imported: your own class must be defined before the file is read.

        Args:
            name: A `public_name`, or a name with its module, as version 0.1 wrote it.
        """
        if name.startswith(f'{PACKAGE}.'):
            name = f'{PACKAGE}.{name.rpartition(".")[2]}'
        return Backbone._kinds.get(name)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along the height and the width of `image_size`, (h, w)."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def drawn(self) -> tuple[str, ...]:
        """Modules with random values although the rest of the base was loaded."""
        return ()

    @abstractmethod
    def embed(self, image: Tensor, **metadata: Tensor) -> Tokens:
        """Return the patch tokens of an image, with content and position separate.

        Args:
            image: Normalised pixels, (B, C, H, W).
            **metadata: Further inputs of the backbone for the image, such as dates.

        Raises:
            ValueError: If the number of channels or the image size does not fit.
        """

    @abstractmethod
    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of an image as (B, N, P), in the order of `embed`."""

    @abstractmethod
    def prefix(self) -> Tensor:
        """Return the special tokens with their position, (1, S, D), class token first.

        They come before the patch tokens in every block.
        """

    @abstractmethod
    def start_from(self, weights: WeightsEnum | PathLike[str] | str) -> None:
        """Load published weights of this kind of backbone, or of one that it extends.

        Args:
            weights: A path, an enum or its name, or the name of a timm model.

        Raises:
            FileNotFoundError: If the weights are not on disk and cannot be downloaded.
            RuntimeError: If the weights do not fit; all misfits are listed.
        """

    def mae_decoder(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        channel_dim: int,
        time_dim: int,
        legacy_order: bool,
    ) -> MAEDecoder:
        """Return a new decoder for the pixels of this backbone's tokens.

        Args:
            dim: Width of the decoder.
            depth: Number of blocks.
            heads: Attention heads.
            mlp_ratio: Width of a block's hidden layer, relative to the decoder's.
            channel_dim: Part of the width that encodes a spectral group, if there are
                groups.
            time_dim: Part of the width that encodes a time, if there are times.
            legacy_order: Whether bands are decoded in SatMAE's published order, if
                there are groups.

        Raises:
            ValueError: If the widths do not fit together.
        """
        return MAEDecoder(
            self.embed_dim,
            self.in_channels,
            self.patch_size,
            self.grid,
            dim,
            depth,
            heads,
            mlp_ratio,
        )

    def enter(
        self, content: Tensor, position: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the input of the first block, and further inputs of every block.

        Args:
            content: (B, K, D).
            position: (1 or B, K, P), as `embed` returned it.

        Returns:
            All tokens, (B, S + K, D), and keyword arguments of the blocks and of their
            attention layers.
        """
        tokens = content + position
        prefix = self.prefix().expand(len(tokens), -1, -1)
        return self.norm_pre(cat([prefix, tokens], dim=1)), {}

    def encode(
        self, content: Tensor, position: Tensor, wanted: Tensor | None = None
    ) -> Features:
        """Return the features of patch tokens.

        Args:
            content: (B, K, D), any subset of an image's tokens in any order.
            position: (1 or B, K, P), positions of the same tokens from `embed`.
            wanted: (B, K) bool, True where features are wanted; all if None. The
                feature of the class token is always returned. The last block then works
                only on these: up to rounding, the patch features are
                `encode(content, position).patch[wanted]`. *wanted* can be on any
                device; on the CPU, nothing waits for an accelerator.

        Raises:
            ValueError: If `prefix` returns no token.
        """
        x, context = self.enter(content, position)
        special = x.shape[1] - content.shape[1]
        if special < 1:
            raise ValueError(
                f'`prefix` of {type(self).__name__} returns no token: a class token is'
                ' required, before all others'
            )
        if wanted is None:
            x = self._through(self.blocks, x, context)
            return self._read(x, content.shape[1])
        x = self._through(self.blocks[:-1], x, context)
        keep = F.pad(wanted, (special, 0))
        keep[:, 0] = True
        index = keep.flatten().nonzero().squeeze(1)  # (R,), image by image
        first = index % x.shape[1] == 0
        cls, patch = (
            chosen.nonzero().squeeze(1).to(x.device) for chosen in (first, ~first)
        )
        rows = self.block_rows(self.blocks[-1], x, keep, index.to(x.device), context)
        rows = self.norm(rows)
        return Features(rows[cls], rows[patch])

    def block_rows(
        self,
        block: Any,
        x: Tensor,
        keep: Tensor,
        index: Tensor,
        context: Mapping[str, Tensor],
    ) -> Tensor:
        """Return chosen rows of a block's output, (R, D), image by image.

        Args:
            block: One of `blocks`.
            x: All tokens, (B, S + K, D).
            keep: (B, S + K) bool, True for the R chosen tokens.
            index: (R,), their indices in `x.flatten(0, 1)`, on its device.
            context: What the block gets in addition to the tokens.
        """
        plain = isinstance(block, Block) and hasattr(block.attn, 'of_rows')
        # Drop path drops whole images, but separate rows do not know their image.
        if not plain or (block.training and isinstance(block.drop_path1, DropPath)):
            return block(x, **context).flatten(0, 1)[index]
        rows = x.flatten(0, 1)[index]
        attended = block.attn.of_rows(block.norm1(x), keep, index, **context)
        rows = rows + block.ls1(attended)
        return rows + block.ls2(block.mlp(block.norm2(rows)))

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
        return self.encode(content, position, wanted)

    def features(
        self, image: Tensor, blocks: Sequence[int], **metadata: Tensor
    ) -> list[Features]:
        """Return the outputs of chosen blocks, each after the final norm.

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
        x, context = self.enter(content, position)
        found: dict[int, Features] = {}
        for index, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = block(x, **context)
            if index in wanted:
                found[index] = self._read(x, content.shape[1])
        return [found[index] for index in wanted]

    def canonical_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under their published names, with fused `attn.qkv`.

        Tensors that need no fusing share their memory with the parameters.

        Raises:
            RuntimeError: If there are adapters: their weights have no such name.
        """
        if self._adapted:
            raise RuntimeError(
                'the backbone has adapters, which have no published names:'
                ' call canonical_state_dict on adapt.merged(backbone)'
            )
        return fuse_qkv(self.state_dict())

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Load weights with fused or split attention, and record their fingerprint.

        The fingerprint is taken of the tensors as given, before any of them is resized,
        cast or split, and only if they are a whole base: a delta or an adapted state
        leaves it unchanged.

        Args:
            state_dict: Tensors under published names, or under this module's own.
            strict: Whether missing and unexpected keys are an error.
            assign: As in `torch.nn.Module.load_state_dict`.

        Returns:
            The missing and the unexpected keys, both empty if strict.

        Raises:
            RuntimeError: If keys or shapes do not fit; all of them are listed.
        """
        published = fuse_qkv(state_dict)
        fitted = split_qkv(self._fitted(published))
        try:
            keys = super().load_state_dict(fitted, strict, assign)
        except RuntimeError as error:
            raise RuntimeError(
                f'the weights do not fit, choose the *model* they belong to: {error}'
            ) from error
        if not (keys.missing_keys or keys.unexpected_keys or self._adapted):
            self.record.fingerprint = fingerprint(published)
        return keys

    def _fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state, with tensors that depend on the image size resized."""
        return state

    @property
    def _adapted(self) -> bool:
        # Every tuner layer of PEFT keeps the layer it replaces under this name.
        return any(hasattr(module, 'base_layer') for module in self.modules())

    def _through(
        self, blocks: nn.Sequential, x: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        again = self.checkpointing and torch.is_grad_enabled()
        for block in blocks:
            run = partial(block, **context)
            x = checkpoint(run, x, use_reentrant=False) if again else run(x)
        return x

    def _read(self, x: Tensor, count: int) -> Features:
        x = self.norm(x)  # (B, S + K, D)
        return Features(x[:, 0], x[:, x.shape[1] - count :])


def compile_blocks(module: nn.Module) -> None:
    """Compile all transformer blocks in *module* that are not compiled yet, in place.

    Their shapes are fixed by the views. The shapes of later layers depend on how many
    patches are masked, so these are not compiled. Student, teacher and anchor have
    their own graphs at each size, and with drop path so does each block. torch's
    limits, which guard against shapes that never repeat, are raised to allow for them.
    """
    import torch._dynamo.config as limits  # slow to import, and only needed here

    parts = [part for part in module.modules() if isinstance(part, _COMPILED)]
    graphs = _KINDS_OF_PASS * max((len(part.blocks) for part in parts), default=0)
    for name in ('recompile_limit', 'accumulated_recompile_limit'):
        setattr(limits, name, max(graphs, getattr(limits, name)))
    for part in parts:
        for block in part.blocks:
            if block._compiled_call_impl is None:
                block.compile(fullgraph=True, dynamic=False)


_COMPILED = (Backbone, MAEDecoder)
# More than student, teacher and anchor need at two sizes, in both modes.
_KINDS_OF_PASS = 16
