"""Whole backbones as folders that timm loads by name."""

import os
from typing import Any

import timm
from timm.models import save_for_hf

from torchgeo_explora.export.timm_file import plain_state
from torchgeo_explora.models import Backbone, RotaryViT, ViT
from torchgeo_explora.writing import filling


def export_timm_folder(backbone: Backbone, folder: str | os.PathLike[str]) -> None:
    """Write a folder for `timm.create_model('local-dir:FOLDER', pretrained=True)`.

    It holds the weights as `model.safetensors`, and a `config.json` with the
    architecture, its arguments, the image size, mean and standard deviation. Uploaded
    to the Hub, it is read as `timm.create_model('hf-hub:USER/NAME', pretrained=True)`.
    The model gives pooled features: for a classifier, pass *num_classes*.

    Args:
        backbone: A `ViT` or `RotaryViT`, adapted or plain.
        folder: Where the files go.

    Raises:
        OSError: If the files cannot be written.
        ValueError: If timm has no such model, or the backbone has visual prompts or has
            lost its final norm.
    """
    if not isinstance(backbone, RotaryViT | ViT):
        raise ValueError(
            f'timm has no model for a {type(backbone).__name__}: use export_timm or'
            ' export_onnx'
        )
    options = {**backbone.arguments}
    model = options.pop('model')
    options['in_chans'] = options.pop('in_channels')
    options['img_size'] = backbone.image_size
    del options['image_size']
    vit: Any = timm.create_model(model, num_classes=0, global_pool='token', **options)
    vit.load_state_dict(plain_state(backbone))
    # For another number of channels, use the mean of the known statistics.
    mean, std = (
        values if len(values) == backbone.in_channels else _same(values, backbone)
        for values in (backbone.mean, backbone.std)
    )
    described: dict[str, Any] = {
        'input_size': (backbone.in_channels, *backbone.image_size),
        'mean': mean,
        'std': std,
    }
    vit.pretrained_cfg = {**_as_dict(vit.pretrained_cfg), **described}
    arguments = {k: v for k, v in options.items() if k not in ('img_size', 'in_chans')}
    with filling(folder) as part:
        save_for_hf(
            vit,
            str(part),
            model_config={'pretrained_cfg': described},
            model_args={**arguments, 'img_size': backbone.image_size},
            safe_serialization=True,
        )


def _same(values: tuple[float, ...], backbone: Backbone) -> tuple[float, ...]:
    return (sum(values) / len(values),) * backbone.in_channels


def _as_dict(config: Any) -> dict[str, Any]:
    return dict(config) if isinstance(config, dict) else dict(config.to_dict())
