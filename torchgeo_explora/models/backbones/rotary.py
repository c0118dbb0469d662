"""Vision Transformers with rotary positions (DINOv3 and its family) as a backbone."""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import PurePath
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.functional import patchify
from torchgeo_explora.models.backbones.attention import Attention, split_linear
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.refused import (
    alternative,
    alternative_to_unbuilt,
)
from torchgeo_explora.models.backbones.tokens import Tokens, check_size, pair
from torchgeo_explora.models.backbones.vit import ViT, check_timm_arguments
from torchgeo_explora.models.checkpoints import read_state
from torchgeo_explora.models.formats.dinov3 import PERIODS, without_zero_biases
from torchgeo_explora.models.formats.enums import plain_enum
from torchgeo_explora.models.formats.model_names import suggestion

_SUPPORTED = (
    "RotaryViT takes timm's Eva models with a class token, rotary positions and no"
    ' position table, such as vit_small_patch16_dinov3'
)


class RotaryViT(Backbone):
    """A timm `Eva` model with rotary positions (DINOv3) as `embed` and `encode`.

    Modules and weights keep timm's names, except that `attn.qkv` is split into `q`, `k`
    and `v`. A position is the sine and cosine of each patch's coordinates: `encode`
    rotates queries and keys by it, so there is no table to resize, and images of any
    size can be used directly. Class and register tokens are not rotated.

    Siméoni et al., *DINOv3* (https://arxiv.org/abs/2508.10104). In training,
    coordinates can be shifted, then jittered, then rescaled: drawn for each batch by
    torch's CPU generator, and never in eval mode, so not for a teacher. DINOv3
    rescales by up to 2. Mean and standard deviation are those that timm has for the
    weights: weights of SAT-493M have their own.

    Args:
        model: Name of a timm model.
        weights: As for `ViT`. A file of SAT-493M is recognised by that word in its
            name, or in the name of a folder or repository that contains it.
        in_channels: C, channels of an image.
        image_size: Training size in pixels, one number or height and width; timm's
            default for the model if None.
        rope_shift_coords: s; coordinates, in [-1, 1], are shifted along each axis by
            up to s in either direction.
        rope_jitter_coords: j; coordinates are multiplied by a factor for each axis,
            log-uniform in [1 / j, j].
        rope_rescale_coords: r; coordinates are multiplied by one factor for both axes,
            log-uniform in [1 / r, r].
        **timm_kwargs: Further arguments of the timm model, such as embed_dim, depth,
            num_heads, patch_size, drop_path_rate.

    Raises:
        FileNotFoundError: If the weights are not on disk and cannot be downloaded.
        RuntimeError: If the weights do not fit.
        TypeError: If timm does not know an argument.
        ValueError: If the model is unknown or of another kind, `image_size` is not a
            multiple of its patch size, the weights are of another kind of model, or a
            range of the coordinates is not valid.
    """

    file_arguments = (
        *ViT.file_arguments,
        *('num_reg_tokens', 'rope_grid_indexing', 'rope_grid_offset'),
        *('rope_rotate_half', 'rope_temperature'),
    )

    def __init__(
        self,
        model: str,
        weights: WeightsEnum | PathLike[str] | str | bool | None = None,
        in_channels: int = 3,
        image_size: int | Sequence[int] | None = None,
        rope_shift_coords: float | None = None,
        rope_jitter_coords: float | None = None,
        rope_rescale_coords: float | None = None,
        **timm_kwargs: Any,
    ) -> None:
        """Build the timm model and take it apart."""
        ranges = {
            'rope_shift_coords': rope_shift_coords,
            'rope_jitter_coords': rope_jitter_coords,
            'rope_rescale_coords': rope_rescale_coords,
        }
        check_timm_arguments(timm_kwargs, _SUPPORTED)
        timm_kwargs |= {k: v for k, v in ranges.items() if v is not None}
        options = {'in_chans': in_channels, **timm_kwargs}
        if image_size is not None:
            options['img_size'] = pair(image_size)
        vit = _build(model, options)
        size, patch = vit.patch_embed.img_size, vit.patch_embed.patch_size[0]
        check_size(size, patch)
        arguments = {'model': model, 'in_channels': in_channels, 'image_size': size}
        super().__init__(
            arguments | timm_kwargs, vit.embed_dim, patch, in_channels, size
        )
        self.mean = tuple(vit.pretrained_cfg['mean'])
        self.std = tuple(vit.pretrained_cfg['std'])
        for name in ('patch_embed', 'cls_token', 'reg_token', 'norm_pre', 'norm'):
            setattr(self, name, getattr(vit, name))
        self.rope = vit.rope
        for block in vit.blocks:
            block.attn = RotaryAttention(block.attn)
        self.blocks = nn.Sequential(*vit.blocks)
        if weights:
            self.start_from(weights)

    def start_from(self, weights: WeightsEnum | PathLike[str] | str | bool) -> None:
        """Load weights, as `ViT.start_from` does, with their mean and std.

        Biases of q and v that are all zero are treated as no biases.

        Args:
            weights: As for the constructor; True for timm's own for this model.

        Raises:
            FileNotFoundError: If the weights are not on disk and cannot be downloaded.
            RuntimeError: If the weights do not fit; all misfits are listed.
            ValueError: If they are of another kind of model; the message says which.
        """
        plain_enum(weights)  # refuses other architectures with a clear message
        model = self.arguments['model']
        state, extras = read_state(weights, model, self.in_channels)
        periods = extras.pop(PERIODS, None)
        if reason := self._misfit(state, periods):
            raise ValueError(f'*weights* {weights} do not fit {model}: they {reason}')
        if not self._biased:
            state = without_zero_biases(state)
        elif 'blocks.0.attn.q_bias' not in state:
            none = torch.zeros(self.embed_dim)
            for index in range(len(self.blocks)):
                state |= {f'blocks.{index}.attn.{name}_bias': none for name in 'qv'}
        self.record.extras = extras
        self.load_state_dict(state)
        if config := _configuration(weights):
            self.mean, self.std = tuple(config.mean), tuple(config.std)

    @property
    def _biased(self) -> bool:
        return 'blocks.0.attn.q.bias' in self.state_dict()

    def _misfit(
        self, state: Mapping[str, Tensor], periods: Tensor | None
    ) -> str | None:
        """Return how weights differ from this model, None if not in an obvious way."""
        if 'pos_embed' in state:
            return (
                'hold a table of positions (pos_embed), and a rotary model has none:'
                ' choose the *model* they belong to'
            )
        tokens: list[Any] = [state.get('reg_token'), self.reg_token]
        found, own = (0 if token is None else token.shape[1] for token in tokens)
        if found != own:
            return (
                f'hold {found} register (storage) tokens, expected {own}: choose the'
                f' *model* they belong to, or give num_reg_tokens={found}'
            )
        kernel = state.get('patch_embed.proj.weight')
        if kernel is not None and kernel.shape[-1] != self.patch_size:
            return (
                f'embed patches of {kernel.shape[-1]} pixels, expected'
                f' {self.patch_size}: choose the *model* they belong to, or give'
                f' patch_size={kernel.shape[-1]}'
            )
        if not self._biased and any(
            key.endswith('.attn.q_bias') for key in without_zero_biases(state)
        ):
            return (
                'have biases of queries and values: choose a *model* of that kind,'
                ' such as vit_small_patch16_dinov3_qkvb'
            )
        # FAIR's files have the periods in bfloat16, with 8 bits; timm computes them.
        rope: Any = self.rope
        if periods is not None and (
            periods.shape != rope.periods.shape
            or not torch.allclose(periods.float(), rope.periods, rtol=2**-7)
        ):
            return (
                f'rotate by other periods, {periods.float().tolist()[:4]} ..., expected'
                f' {rope.periods.tolist()[:4]} ...: give their *num_heads* and'
                ' *rope_temperature*'
            )
        return None

    def embed(self, image: Tensor, **metadata: Tensor) -> Tokens:
        """Return the patch tokens of an image; positions are (1, h * w, 2 D / heads).

        Args:
            image: Normalised pixels, (B, C, H, W); H and W are multiples of the patch
                size.
            **metadata: Ignored.

        Raises:
            ValueError: If the number of channels or the image size does not fit.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f'image has shape {tuple(image.shape)}, expected (B, C, H, W) with C ='
                f' in_channels = {self.in_channels}: choose bands, or build the'
                ' backbone with another in_channels'
            )
        height, width = image.shape[-2:]
        check_size((height, width), self.patch_size)
        patches: Any = self.patch_embed
        x = patches.proj(image)
        grid = (x.shape[-2], x.shape[-1])
        content = patches.norm(x.flatten(2).transpose(1, 2))  # -> (B, h * w, D)
        rope: Any = self.rope
        return Tokens(content, rope.get_embed(shape=list(grid))[None], (1, *grid))

    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of an image as (B, N, P), in the order of `embed`.

        Inside a patch the order is row, column, channel, as in MAE.
        """
        return patchify(image, self.patch_size)

    def prefix(self) -> Tensor:
        """Return class and register tokens, (1, S, D)."""
        tokens: Any = [self.cls_token, self.reg_token]
        return torch.cat([token for token in tokens if token is not None], dim=1)

    def enter(
        self, content: Tensor, position: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return all tokens, and the rotation of each, which every block gets."""
        prefix = self.prefix().expand(len(content), -1, -1)
        still = torch.zeros_like(position[:, :1])
        still[..., position.shape[-1] // 2 :] = 1  # sine 0 and cosine 1
        rope = torch.cat([still.expand(-1, prefix.shape[1], -1), position], dim=1)
        return self.norm_pre(torch.cat([prefix, content], dim=1)), {'rope': rope}

    def block_rows(
        self,
        block: Any,
        x: Tensor,
        keep: Tensor,
        index: Tensor,
        context: Mapping[str, Tensor],
    ) -> Tensor:
        """Return chosen rows of a block's output: see `Backbone.block_rows`."""
        if block.training and isinstance(block.drop_path1, DropPath):
            return block(x, **context).flatten(0, 1)[index]
        rows = x.flatten(0, 1)[index]
        attended = block.attn.of_rows(block.norm1(x), keep, index, **context)
        rows = rows + _scaled(attended, block.gamma_1)
        return rows + _scaled(block.mlp(block.norm2(rows)), block.gamma_2)


class RotaryAttention(Attention):
    """timm's `EvaAttention` with its fused `qkv` as three Linears; same output.

    Args:
        fused: timm's attention. Its keys have no bias.
    """

    def __init__(self, fused: EvaAttention) -> None:
        """Copy the rows of *fused* that belong to each projection."""
        nn.Module.__init__(self)
        self.num_heads = fused.num_heads
        self.dropout = fused.attn_drop.p
        self.rotate_half = fused.rotate_half
        biases = None if fused.q_bias is None else (fused.q_bias, None, fused.v_bias)
        self.q, self.k, self.v = split_linear(fused.qkv, biases)
        self.q_norm, self.k_norm = fused.q_norm, fused.k_norm
        self.norm = fused.norm
        self.proj, self.proj_drop = fused.proj, fused.proj_drop

    def place(
        self, queries: Tensor, keys: Tensor, rows: Tensor | None, **context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys by the positions of their tokens."""
        rope = context['rope'].unsqueeze(1)  # (1 or B, 1, N, 2 * D / heads)
        of_queries = rope
        if rows is not None:
            # Rotations of all N tokens; take those of each image's chosen ones.
            every = rope.expand(len(keys), -1, -1, -1)
            of_queries = torch.take_along_dim(every, rows[:, None, :, None], dim=2)
        return self._rotated(queries, of_queries), self._rotated(keys, rope)

    def _rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        return apply_rot_embed_cat(x, rope, half=self.rotate_half).to(x.dtype)


def is_rotary(model: str) -> bool:
    """Return whether timm builds a model of this name as an `Eva`."""
    name = model.partition('.')[0]
    if not timm.is_model(name):
        return False
    return bool(timm.models.model_entrypoint(name).__module__ == 'timm.models.eva')


def _configuration(weights: object) -> Any:
    """Return timm's configuration for weights; None if it is unknown."""
    if not isinstance(weights, str | PathLike):
        return None
    name = str(weights)
    if timm.is_model(name):
        return timm.models.get_pretrained_cfg(name)
    # Files of the Hub are all named model.safetensors: look at their folder's name.
    for part in reversed(PurePath(name).parts):
        if found := re.search('sat493m|lvd1689m', part.lower()):
            return timm.models.get_pretrained_cfg(
                f'vit_large_patch16_dinov3.{found[0]}'
            )
    return None


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else gamma * x


def _build(model: str, options: dict[str, Any]) -> Any:
    """Return the timm model, or raise and say why it cannot be a backbone."""
    if not timm.is_model(model.partition('.')[0]):
        raise ValueError(
            f'*model* {model!r} is not known to timm ({suggestion(model)}):'
            f' {_SUPPORTED}'
        )
    try:
        # With this pooling, the final norm stays in its place.
        vit: Any = timm.create_model(
            model, num_classes=0, global_pool='token', **options
        )
    except (AssertionError, TypeError) as error:
        raise TypeError(
            f'timm cannot build {model!r}: {error}; {_SUPPORTED}'
            f'{alternative_to_unbuilt(model, Eva)}'
        ) from error
    reason = None
    if type(vit) is not Eva:
        reason = f'is of class {type(vit).__name__}'
    elif vit.rope is None or getattr(vit, 'rope_mixed', False):
        reason = 'does not have rotary positions that all blocks share'
    elif vit.pos_embed is not None:
        reason = 'also has a position table'
    elif vit.cls_token is None:
        reason = 'has no class token'
    elif vit.pos_drop.p or vit.patch_drop is not None:
        reason = 'drops tokens or positions by itself'
    elif any(not _is_plain(block) for block in vit.blocks):
        reason = 'has blocks of another kind'
    if reason:
        raise ValueError(
            f'*model* {model!r} {reason}: {_SUPPORTED}; {alternative(model, vit)}'
        )
    return vit


def _is_plain(block: Any) -> bool:
    attention: Any = block.attn
    return (
        type(block) is EvaBlock
        and type(attention) is EvaAttention
        and attention.qkv is not None
        and attention.gate is None
    )
