"""ExPLoRA's architectures by name, for timm and TorchGeo.

Importing this file registers them with timm.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models.zoo.classifier import (
    Classifier,
    GroupChannelClassifier,
    TemporalClassifier,
)

_WIDTHS = {
    'small': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
    'base': {'embed_dim': 768, 'depth': 12, 'num_heads': 12},
    'large': {'embed_dim': 1024, 'depth': 24, 'num_heads': 16},
}
# Options that timm passes to every model, whatever its architecture.
_OF_TIMM = ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir')


def _config(channels: int, image_size: int, **values: Any) -> dict[str, Any]:
    return {
        'url': '',
        'num_classes': 0,
        'input_size': (channels, image_size, image_size),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'patch_embed.proj',
        'classifier': 'head',
        **values,
    }


def _dinov2(size: str, **options: Any) -> nn.Module:
    ours = {'img_size': 224, 'dynamic_img_size': True}
    config = options.pop('pretrained_cfg', None) or _rgb
    return timm.create_model(
        f'vit_{size}_patch14_dinov2', pretrained_cfg=config, **{**ours, **options}
    )


def _coded(
    kind: Callable[..., Classifier], config: dict[str, Any], size: str, **options: Any
) -> nn.Module:
    config = options.get('pretrained_cfg') or config
    options = {key: value for key, value in options.items() if key not in _OF_TIMM}
    classes, pool = options.pop('num_classes', 0), options.pop('global_pool', 'avg')
    channels = options.pop('in_chans', None)
    if 'img_size' in options:
        options['image_size'] = options.pop('img_size')
    model: Any = kind(**{**_WIDTHS[size], **options})
    if channels not in (None, model.in_channels):
        raise ValueError(
            f'*in_chans* is {channels}, but the model has {model.in_channels} channels:'
            f' {", ".join(getattr(model, "bands", ["red", "green", "blue"]))}'
        )
    model.reset_classifier(classes, pool)
    model.pretrained_cfg = model.default_cfg = config
    return model


_rgb = _config(3, 224)
_sentinel = _config(10, 96, mean=(0.0,) * 10, std=(1.0,) * 10)
_group = partial(_coded, GroupChannelClassifier, _sentinel)
_temporal = partial(_coded, TemporalClassifier, _rgb)
_ARCHITECTURES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    **{
        f'explora_vit_{size}_patch14_224': (partial(_dinov2, size), _rgb)
        for size in _WIDTHS
    },
    **{
        f'explora_vit_{size}_group_patch8_96': (partial(_group, size), _sentinel)
        for size in ('base', 'large')
    },
    **{
        f'explora_vit_{size}_temporal_patch16_224': (partial(_temporal, size), _rgb)
        for size in ('base', 'large')
    },
}
# timm looks for this name in the module of a registered model.
default_cfgs = {name: config for name, (_, config) in _ARCHITECTURES.items()}


def names_of(embed_dim: int, depth: int) -> list[str]:
    """Return the names of the architectures with a width and a depth."""
    return [
        name
        for size, widths in _WIDTHS.items()
        for name in _ARCHITECTURES
        if f'_{size}_' in name
        and (widths['embed_dim'], widths['depth']) == (embed_dim, depth)
    ]


def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """Return a model by its name, as `timm.create_model` does.

    Args:
        name: One of `default_cfgs`.
        pretrained: Whether to load the weights that ExPLoRA's authors published.
        **options: Arguments of timm's VisionTransformer, or of `GroupChannelViT` or
            `TemporalViT` with timm's `num_classes` and `global_pool`.

    Raises:
        FileNotFoundError: If the weights are not on this machine and cannot be
            downloaded.
        ValueError: If no weights were published, or *in_chans* does not fit.
    """
    build, _ = _ARCHITECTURES[name]
    model = build(**options)
    if pretrained:
        from torchgeo_explora.models.zoo.weights import ExploraWeights

        published = {each.meta['model']: each for each in list(ExploraWeights)}
        if name not in published:
            raise ValueError(
                f'no weights are published for {name}, only for'
                f' {", ".join(published)}: use pretrained=False'
            )
        load_encoder(model, published[name].get_state_dict())
    return model


def load_encoder(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load an encoder into a model, and leave the model's head unchanged.

    Raises:
        RuntimeError: If anything except the head is missing, or a tensor does not fit.
    """
    found = model.load_state_dict(state, strict=False)
    missing = [key for key in found.missing_keys if not key.startswith('head.')]
    if missing or found.unexpected_keys:
        raise RuntimeError(
            f'the weights do not fit {type(model).__name__}: missing {missing},'
            f' unexpected {found.unexpected_keys}'
        )


def with_weights(
    name: str, weights: WeightsEnum | None = None, **options: Any
) -> nn.Module:
    """Return a model by its name with published weights, as TorchGeo's builders do."""
    model = create(name, **options)
    if weights is not None:
        load_encoder(model, weights.get_state_dict())
    return model


def _entry(name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return create(name, pretrained, **options)

    build.__name__ = build.__qualname__ = name
    return build


for _name in _ARCHITECTURES:
    register_model(_entry(_name))
