"""Any plain Vision Transformer of timm as a backbone."""

from collections.abc import Iterable, Sequence
from math import isqrt
from os import PathLike
from typing import Any

import timm
import torch
from timm.layers.attention import Attention as FusedAttention
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.functional import patchify, resize_grid
from torchgeo_explora.models.backbones.attention import Attention
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.refused import (
    alternative,
    alternative_to_unbuilt,
)
from torchgeo_explora.models.backbones.tokens import Tokens, check_size, pair
from torchgeo_explora.models.checkpoints import read_state
from torchgeo_explora.models.formats.dinov3 import refuse_rotary
from torchgeo_explora.models.formats.enums import plain_enum, trained_on
from torchgeo_explora.models.formats.model_names import suggestion
from torchgeo_explora.models.formats.names import State

_SUPPORTED = (
    'ViT takes a plain timm VisionTransformer with a class token and a learned position'
    ' table, such as vit_large_patch14_dinov2 or vit_base_patch16_224'
)
_RENAMED = {'img_size': 'image_size', 'in_chans': 'in_channels'}
_FIXED = ('num_classes', 'global_pool', 'class_token', 'pos_embed')
# Where timm would take weights from; it unpickles some of them.
_SOURCES = (
    *('cache_dir', 'checkpoint_path', 'pretrained', 'pretrained_cfg'),
    'pretrained_cfg_overlay',
)


class ViT(Backbone):
    """A timm VisionTransformer (DINOv2, MAE, supervised) as `embed` and `encode`.

    Modules and weights keep timm's names, except that `attn.qkv` is split into `q`, `k`
    and `v`. Unlike timm's, the position table is resized without antialiasing: once to
    `image_size` when weights are loaded, and from there at run time for other sizes by
    DINOv2's rule (offset 0.1). DINOv2's models with registers have another rule, which
    is followed here: at run time with antialiasing and no offset.

    Reference: DINOv2, https://arxiv.org/abs/2304.07193; registers,
    https://arxiv.org/abs/2309.16588.

    Args:
        model: Name of a timm model.
        weights: None for random weights, or a source that
            `torchgeo_explora.models.checkpoints.read_state` takes: True for timm's own,
            a path or address, a weights enum or the name of one.
        in_channels: C, channels of an image. If None, the number of *bands* or that of
            a weights enum, else 3.
        image_size: Training size in pixels, one number or height and width; if None,
            that of a weights enum, else timm's default for the model.
        bands: Names of the channels, in the order of the weights: a task then selects
            them by name from the bands of its images. If None, those of a weights enum,
            if it has any.
        value_range: (low, high) of the sensor values that are mapped to [0, 1], each
            with one value per channel; if None, that of a weights enum, if it has one.
        **timm_kwargs: Further arguments of the timm model, such as embed_dim, depth,
            num_heads, patch_size, drop_path_rate.

    Attributes:
        mean: As for `Backbone`; that of a weights enum if it has one. Otherwise it has
            3 values, as does *std*, for any `in_channels`.
        std: As *mean*.

    Raises:
        FileNotFoundError: If the weights are not on disk and cannot be downloaded.
        RuntimeError: If the weights do not fit; all missing and unexpected keys are
            listed.
        TypeError: If timm does not know an argument.
        ValueError: If the model is unknown or of another kind, `image_size` is not a
            multiple of its patch size, the weights are of a rotary model, or a weights
            enum is of another architecture or of other channels.
    """

    patch_embed: PatchEmbed
    cls_token: nn.Parameter
    reg_token: nn.Parameter | None
    pos_embed: nn.Parameter
    # Arguments of timm with plain values that describe an architecture.
    file_arguments = (
        *('act_layer', 'attn_drop_rate', 'depth', 'drop_path_rate', 'drop_rate'),
        *('dynamic_img_pad', 'dynamic_img_size', 'embed_dim', 'embed_norm_layer'),
        *('fc_norm', 'final_norm', 'fix_init', 'init_values', 'mlp_ratio'),
        *('no_embed_class', 'norm_layer', 'num_heads', 'patch_drop_rate'),
        *('patch_size', 'pos_drop_rate', 'pre_norm', 'proj_bias', 'proj_drop_rate'),
        *('qk_norm', 'qkv_bias', 'reg_tokens', 'scale_attn_norm', 'scale_mlp_norm'),
        'weight_init',
    )

    def __init__(
        self,
        model: str,
        weights: WeightsEnum | PathLike[str] | str | bool | None = None,
        in_channels: int | None = None,
        image_size: int | Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        value_range: Sequence[Sequence[float]] | None = None,
        **timm_kwargs: Any,
    ) -> None:
        """Build the timm model and take it apart."""
        enum = plain_enum(weights) if weights else None
        trained = None if enum is None else trained_on(enum)
        if in_channels is None:
            named = trained.in_channels if trained and bands is None else None
            in_channels = len(bands) if bands is not None else named or 3
        if image_size is None and trained:
            image_size = trained.image_size
        options = {'in_chans': in_channels, **timm_kwargs}
        if image_size is not None:
            options['img_size'] = pair(image_size)
        if weights:
            # Random values would all be overwritten, and drawing them takes seconds.
            options.setdefault('weight_init', 'skip')
        vit = _build(model, options, timm_kwargs)
        size, patch = vit.patch_embed.img_size, vit.patch_embed.patch_size[0]
        check_size(size, patch)
        arguments = {'model': model, 'in_channels': in_channels, 'image_size': size}
        super().__init__(
            arguments | timm_kwargs, vit.embed_dim, patch, in_channels, size
        )
        self.mean = tuple(vit.pretrained_cfg['mean'])
        self.std = tuple(vit.pretrained_cfg['std'])
        self.pooling = 'mean' if model.endswith('.mae') else 'cls'
        self.patch_embed = vit.patch_embed
        self.cls_token = vit.cls_token
        self.reg_token = vit.reg_token
        self.pos_embed = vit.pos_embed
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks
        self.norm = vit.norm
        for block in vit.blocks:
            block.attn = Attention(block.attn)
        if weights:
            self.start_from(enum or weights)
        # Arguments take precedence over what the weights say.
        if bands is not None:
            self._name_bands(bands)
        if value_range is not None:
            self._set_range(value_range)

    def start_from(self, weights: WeightsEnum | PathLike[str] | str | bool) -> None:
        """Load weights of any format that `checkpoints.read_state` knows.

        Args:
            weights: As for the constructor; True for timm's own for this model.

        Raises:
            FileNotFoundError: If the weights are not on disk and cannot be downloaded.
            RuntimeError: If the weights do not fit; all misfits are listed.
            ValueError: If the weights are of a rotary model, or a weights enum is of
                another architecture or of other channels.
        """
        enum = plain_enum(weights)
        trained = None if enum is None else trained_on(enum)
        count = trained.in_channels if trained else None
        # Weights for three channels are converted to any number.
        if count not in (None, 3, self.in_channels):
            raise ValueError(
                f'*in_channels* is {self.in_channels}, and {enum} takes {count}:'
                f' {", ".join((trained and trained.bands) or ())}; leave *in_channels*'
                ' out, or choose other weights'
            )
        state, extras = read_state(
            enum or weights, self.arguments['model'], self.in_channels
        )
        refuse_rotary(state, weights)
        if enum is not None:
            self._compare_sizes(state, enum)
        self.load_state_dict(state)
        self.record.extras = extras
        if trained is None or count != self.in_channels:
            return
        if trained.bands:
            self._name_bands(trained.bands)
        if trained.value_range and trained.mean and trained.std:
            self._set_range(trained.value_range)
            self.mean, self.std = trained.mean, trained.std

    def _name_bands(self, bands: Sequence[str]) -> None:
        if len(bands) != self.in_channels:
            raise ValueError(
                f'*bands* has {len(bands)} names, {", ".join(bands)}, for in_channels ='
                f' {self.in_channels}: give one name for each channel'
            )
        self.bands = tuple(bands)
        self.arguments['bands'] = list(bands)

    def _set_range(self, ends: Sequence[Sequence[float]]) -> None:
        sizes = [len(end) for end in ends]
        if sizes != [self.in_channels] * 2:
            raise ValueError(
                f'*value_range* has {sizes} values, expected low and high with'
                f' in_channels = {self.in_channels} values each'
            )
        low, high = (tuple(float(value) for value in end) for end in ends)
        self.value_range = (low, high)
        self.arguments['value_range'] = [list(low), list(high)]

    def _compare_sizes(self, state: State, enum: WeightsEnum) -> None:
        kernel = state.get('patch_embed.proj.weight')
        mine = self.patch_embed.proj.weight.shape
        if kernel is not None and kernel.shape != mine:
            (width, _, side, _), (own_width, _, own_side, _) = kernel.shape, mine
            raise ValueError(
                f'{enum} is of {enum.meta.get("model", "another model")}, {width} wide'
                f' with patches of {side} pixels; *model*'
                f' {self.arguments["model"]!r} is {own_width} wide with patches of'
                f' {own_side}: give that model'
            )

    def embed(self, image: Tensor, **metadata: Tensor) -> Tokens:
        """Return the patch tokens of an image, with content and position separate.

        Args:
            image: Normalised pixels, (B, C, H, W); H and W are multiples of the patch
                size, and need not be `image_size`.
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
        x = self.patch_embed.proj(image)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h * w, D)
        return Tokens(self.patch_embed.norm(x), self.position(grid), (1, *grid))

    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of an image as (B, N, P), in the order of `embed`.

        Inside a patch the order is row, column, channel, as in MAE.
        """
        return patchify(image, self.patch_size)

    def prefix(self) -> Tensor:
        """Return class and register tokens with their position, (1, S, D)."""
        prefix: Tensor = self.cls_token
        if self.reg_token is not None:
            prefix = torch.cat([prefix, self.reg_token], dim=1)
        if self._prefix_rows:
            prefix = prefix + self.pos_embed[:, : self._prefix_rows]
        return prefix

    def position(self, grid: tuple[int, int]) -> Tensor:
        """Return the position of patch tokens on a grid (h, w), (1, h * w, D)."""
        table = self.pos_embed[:, self._prefix_rows :]
        if self.reg_token is None:
            return resize_grid(table, grid, offset=0.1, source=self.grid)
        return resize_grid(table, grid, antialias=True, source=self.grid)

    @property
    def _prefix_rows(self) -> int:
        # timm's register models have position rows for patches only.
        return self.pos_embed.shape[1] - self.grid[0] * self.grid[1]

    def _fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        table = state.get('pos_embed')
        if table is None or table.shape == self.pos_embed.shape:
            return state
        prefix, rows = self._prefix_rows, table.shape[1]
        if isqrt(rows - prefix) ** 2 != rows - prefix:
            if isqrt(rows) ** 2 != rows:
                raise RuntimeError(
                    f'pos_embed has {rows} rows: expected {prefix} for special tokens'
                    f' and a square grid, or {self.pos_embed.shape[1]} in all'
                )
            # Without rows for the special tokens, these get zeros: the same function.
            table = nn.functional.pad(table, (0, 0, prefix, 0))
        special, patches = table[:, :prefix], table[:, prefix:]
        patches = resize_grid(patches.float(), self.grid)
        return state | {'pos_embed': torch.cat([special.float(), patches], dim=1)}


def check_timm_arguments(names: Iterable[str], supported: str) -> None:
    """Raise if a user of a backbone may not set one of these arguments of timm.

    Args:
        names: The arguments that the user gives.
        supported: The models that the backbone takes, for the error.

    Raises:
        ValueError: If another argument sets one of them, or it cannot be chosen.
    """
    for name in names:
        if name in _RENAMED:
            raise ValueError(f'*{name}* is set by *{_RENAMED[name]}*')
        if name in _FIXED:
            raise ValueError(f'*{name}* cannot be chosen: {supported}')
        if name in _SOURCES:
            raise ValueError(f'*{name}* cannot be chosen: give *weights* instead')


def _build(model: str, options: dict[str, Any], timm_kwargs: dict[str, Any]) -> Any:
    """Return the timm model, or raise and say why it cannot be a backbone."""
    check_timm_arguments(timm_kwargs, _SUPPORTED)
    if not timm.is_model(model):
        raise ValueError(f'*model* {model!r} is not known to timm: {suggestion(model)}')
    try:
        # Without pooling, the final norm stays in its place for every model.
        vit = timm.create_model(model, num_classes=0, global_pool='', **options)
    except (AssertionError, TypeError) as error:
        raise TypeError(
            f'timm cannot build {model!r}: {error}; {_SUPPORTED}'
            f'{alternative_to_unbuilt(model, VisionTransformer)}'
        ) from error
    _check_kind(model, vit)
    return vit


def _check_kind(model: str, vit: Any) -> None:
    """Raise unless the timm model is one that `ViT` can take apart."""
    reason = None
    if type(vit) is not VisionTransformer:
        reason = f'is a {type(vit).__name__}'
    elif vit.cls_token is None:
        reason = 'has no class token'
    elif vit.pos_embed is None:
        reason = 'has no position table'
    elif type(vit.patch_embed) is not PatchEmbed:
        reason = f'embeds patches by {type(vit.patch_embed).__name__}'
    elif vit.pos_drop.p or not isinstance(vit.patch_drop, nn.Identity):
        reason = 'drops tokens or positions by itself'
    elif any(
        type(block) is not Block
        or type(block.attn) is not FusedAttention
        or getattr(block.attn, 'gate', None) is not None
        for block in vit.blocks
    ):
        reason = 'has blocks of another kind'
    if reason:
        raise ValueError(
            f'*model* {model!r} {reason}: {_SUPPORTED}; {alternative(model, vit)}'
        )
