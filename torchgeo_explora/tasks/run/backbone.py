"""From a task's arguments to the backbone that a downstream task starts from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from timm.layers.drop import DropPath
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import load_delta, merged, read_delta_metadata
from torchgeo_explora.augment import IMAGENET_MEAN, IMAGENET_STD
from torchgeo_explora.models import ViT
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.tasks.run.adaptation import for_channels


def build_backbone(
    model: Backbone | str,
    weights: WeightsEnum | str | bool | None,
    delta: str | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Backbone:
    """Return a plain backbone with its weights, and a delta folded in.

    A base with a delta is another base: its `fingerprint` is a hash of both, and not of
    the folded values, whose last bits differ between machines.

    Args:
        model: A backbone, or the name of a timm VisionTransformer.
        weights: As for `ViT`; a given backbone loads them by its `start_from`.
        delta: File of `save_delta`.
        in_channels: Channels of the images, for a named model (3 if None).
        image_size: Training size in pixels, for a named model (224 if None).
        model_args: Further arguments of a named model.

    Raises:
        ValueError: If arguments of a named model come with a backbone, or the delta
            belongs to another base.
    """
    if isinstance(model, str):
        backbone: Any = ViT(
            model,
            weights,
            in_channels=in_channels or 3,
            image_size=image_size or 224,
            **(model_args or {}),
        )
    else:
        backbone = fill(model, weights, in_channels=in_channels, model_args=model_args)
    backbone.rest = {}
    if delta is not None:
        metadata = read_delta_metadata(delta)
        backbone = merged(load_delta(backbone, delta))
        both = f'{metadata["base"]}\n{metadata["delta"]}'
        # What the base had nothing for is in every delta on it.
        backbone.scratch = ()
        backbone.fingerprint = hashlib.sha256(both.encode()).hexdigest()
        for name in ('mean', 'std'):
            if name in metadata:
                setattr(backbone, name, tuple(json.loads(metadata[name])))
    return backbone


def fill(
    backbone: Any, weights: WeightsEnum | str | bool | None, **named: Any
) -> Backbone:
    """Return a backbone that was given, with the weights in it.

    Args:
        backbone: Any with `start_from`.
        weights: What that takes; None leaves it as it is.
        **named: Arguments of a task for a timm model by name, all None.

    Raises:
        ValueError: If one of them is not, or *weights* is True.
    """
    kind = type(backbone).__name__
    for name, value in named.items():
        if value is not None:
            raise ValueError(
                f'*{name}* describes a timm model by name: set it among the arguments'
                f' of {kind}'
            )
    if weights is True:
        raise ValueError(
            f'*weights* True means those of a timm model by name: for {kind} give the'
            ' path of a checkpoint or the name of a timm model, or None to leave it as'
            ' it is'
        )
    if weights:
        backbone.start_from(weights)
    filled: Backbone = backbone
    return filled


def statistics(
    backbone: Backbone,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the normalisation, of values in [0, 1].

    What is not given is what the delta was trained with, or the base, or ImageNet's.
    """
    given = (
        tuple(value or for_channels(getattr(backbone, name, default), channels))
        for name, value, default, channels in (
            ('mean', mean, IMAGENET_MEAN, backbone.in_channels),
            ('std', std, IMAGENET_STD, backbone.in_channels),
        )
    )
    first, second = given
    return first, second


def set_drop_path(backbone: Backbone, rate: float) -> None:
    """Drop residual branches per sample, in place: 0 in the first block, *rate* last.

    Args:
        backbone: Any; its blocks are timm's.
        rate: Of the last block, in [0, 1).

    Raises:
        ValueError: If the rate is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f'*drop_path* is {rate}: choose from 0 to below 1')
    blocks: Any = backbone.blocks
    for index, block in enumerate(blocks):
        share = index / max(1, len(blocks) - 1)
        block.drop_path1, block.drop_path2 = (DropPath(rate * share) for _ in range(2))


def describe(model: Backbone | str) -> str | dict[str, Any]:
    """Return a backbone as its class path and arguments, which `rebuild` undoes."""
    if isinstance(model, str):
        return model
    kind = type(model)
    path = f'{kind.__module__}.{kind.__qualname__}'
    # Lists for tuples, as a configuration has them.
    return {'class_path': path, 'init_args': json.loads(json.dumps(model.arguments))}


def rebuild(model: Backbone | str | Mapping[str, Any]) -> Backbone | str:
    """Return a model as it was before `describe`; another one is left alone."""
    if not isinstance(model, Mapping):
        return model
    module, _, name = model['class_path'].rpartition('.')
    backbone: Backbone = getattr(import_module(module), name)(**model['init_args'])
    return backbone
