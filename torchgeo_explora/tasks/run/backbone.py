"""From a task's arguments to its backbone."""

import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from timm.layers.drop import DropPath
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import load_delta, merged, read_delta_metadata
from torchgeo_explora.models import RotaryViT, ViT
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.from_file import (
    backbone_from_file,
    outline_from_file,
    statistics_from_file,
)
from torchgeo_explora.models.backbones.rotary import is_rotary

#: What the *model* of a task may be: a backbone, the name of a timm model, the class
#: path of a backbone, or a class path with arguments, as `plain` gives it.
type Model = Backbone | str | Mapping[str, Any]
#: What the *weights* of a task may be.
type Weights = bool | WeightsEnum | PathLike[str] | str | None


def build_backbone(
    model: Model,
    weights: Weights = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    drop_path: float | None = None,
    model_args: Mapping[str, Any] | None = None,
    delta: str | None = None,
) -> Backbone:
    """Return a plain backbone with its weights.

    Args:
        model: A backbone, the name of a timm model, or the class path of a backbone.
        weights: As for `ViT`; a given backbone loads them with its `start_from`. None
            leaves a given backbone unchanged.
        in_channels: Number of channels of the images, for a model by name; if None,
            taken from a weights enum, else 3.
        image_size: Training size in pixels, for a model by name; if None, taken from
            *delta*, else 224.
        drop_path: Drop-path rate of the last block.
        model_args: Further arguments of a model by name or class path.
        delta: File of a delta that will be folded in.

    Raises:
        ValueError: If arguments for a model by name are given with a backbone, the
            class is unknown, or the weights or the size do not fit.
    """
    if isinstance(model, str) and '.' in model and Backbone.kind(model) is not None:
        model = {'class_path': model, 'init_args': dict(model_args or {})}
        model_args = None
    if isinstance(model, str):
        given = {'drop_path_rate': drop_path, 'in_channels': in_channels}
        options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        build: type[RotaryViT | ViT] = RotaryViT if is_rotary(model) else ViT
        trained = trained_side(delta) if delta and not image_size else None
        options['image_size'] = image_size or trained or 224
        try:
            return build(model, weights, **options, **(model_args or {}))
        except ValueError as error:
            if trained is None:
                raise
            raise ValueError(
                f'{error}; *image_size* is {trained} because {delta} was trained at'
                ' that size: give the model that it was trained for, or *image_size*'
            ) from error
    if isinstance(model, Mapping):
        # From a checkpoint, which may contain anything.
        backbone = backbone_from_file(
            model.get('class_path'), model.get('init_args', {}), source='*model*'
        )
    else:
        backbone = model
    kind = type(backbone).__name__
    for name, value in (('in_channels', in_channels), ('model_args', model_args)):
        if value is not None:
            raise ValueError(
                f'*{name}* describes a timm model by name: set it among the arguments'
                f' of {kind}'
            )
    if weights is True:
        raise ValueError(
            f'*weights* True means the weights of a timm model by name: for {kind} give'
            ' the path of a checkpoint or the name of a timm model, or None to leave it'
            ' as it is'
        )
    if weights:
        backbone.start_from(weights)
    if drop_path:
        set_drop_path(backbone, drop_path)
    return backbone


def trained_side(delta: str) -> int | None:
    """Return the side of the images that the backbone of a delta was made for.

    Args:
        delta: File of `save_delta`.

    Returns:
        Pixels; None if the images were not square, or the class of the backbone is not
        known here.

    Raises:
        ValueError: If the file describes a backbone that cannot be built.
    """
    metadata = read_delta_metadata(delta)
    kind, arguments = metadata['backbone'], metadata['arguments']
    if Backbone.kind(kind) is None:
        return None
    height, width = outline_from_file(kind, arguments, delta).image_size
    return height if height == width else None


def fold_delta(backbone: Backbone, delta: str) -> Backbone:
    """Return a plain backbone with a delta folded in.

    A base with a delta folded in counts as another base: its fingerprint is a hash of
    the fingerprints of both, not of the folded values, whose last bits differ between
    machines.

    Args:
        backbone: The base.
        delta: File of `save_delta`.

    Raises:
        ValueError: If the delta belongs to another base.
    """
    metadata = read_delta_metadata(delta)
    folded = merged(load_delta(backbone, delta))
    both = f'{metadata["base"]}\n{metadata["delta"]}'
    # Parameters that the base's weights lacked are in every delta on it.
    folded.record.untrained = ()
    folded.record.fingerprint = hashlib.sha256(both.encode()).hexdigest()
    statistics_from_file(folded, metadata, delta)
    return folded


def statistics(
    backbone: Backbone,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for normalisation, of values in [0, 1].

    A value that is not given is taken from the delta or the base. If the base has
    another number of channels, every channel gets the average over the base's channels.
    """

    def choose(
        given: Sequence[float] | None, known: Sequence[float]
    ) -> tuple[float, ...]:
        if given:
            return tuple(given)
        if len(known) == backbone.in_channels:
            return tuple(known)
        return (sum(known) / len(known),) * backbone.in_channels

    return choose(mean, backbone.mean), choose(std, backbone.std)


def side_of(backbone: Backbone) -> int:
    """Return the side of the square views that a backbone is made for.

    Raises:
        ValueError: If it is made for images that are not square.
    """
    height, width = backbone.image_size
    if height != width:
        raise ValueError(
            f'the backbone is made for {height} x {width} pixels, but views are square:'
            ' give *image_size*'
        )
    return height


def set_drop_path(backbone: Backbone, rate: float) -> None:
    """Set drop path, in place: from 0 in the first block to *rate* in the last.

    Args:
        backbone: Any backbone with timm's blocks.
        rate: Probability in the last block of dropping a residual branch for a sample,
            in [0, 1).

    Raises:
        ValueError: If the rate is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f'*drop_path* is {rate}: choose from 0 to below 1')
    blocks: Any = backbone.blocks
    for index, block in enumerate(blocks):
        share = index / max(1, len(blocks) - 1)
        block.drop_path1, block.drop_path2 = (DropPath(rate * share) for _ in range(2))
