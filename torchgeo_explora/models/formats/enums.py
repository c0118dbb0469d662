"""What a weights enum says about its architecture and its training images."""

import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models.formats.files import SUFFIXES

#: (low, high) of sensor values, one for each channel.
type Ends = tuple[tuple[float, ...], tuple[float, ...]]

# Decibels of Sentinel-1: mean +- 4 standard deviations of SSL4EO-S12.
_DECIBELS = {'VV': (-34.0, 9.0), 'VH': (-44.0, 4.0)}
# Sentinel-2's digital number of full reflectance.
_REFLECTANCE = (0.0, 10_000.0)

#: Why enums of TorchGeo cannot be a plain ViT, by the start of their class's name.
OTHERS = {
    'Aurora': 'it forecasts the weather on grids of the atmosphere',
    'CROMA': 'its attention is biased by the distance of patches, and optical and radar'
    ' images have separate encoders',
    'CopernicusFM': 'its patches are embedded by wavelength and bandwidth, and its'
    ' tokens encode place, time and area',
    'DEO': 'it is a Swin Transformer, without a class token',
    'DOFA': 'its patches are embedded by wavelength',
    'EarthLoc': 'it is a ResNet',
    'OlmoEarth': 'its tokens come from many sensors and times',
    'Panopticon': 'every channel has its own tokens, which cross-attention joins',
    'Presto': 'it reads time series of single pixels',
    'ResNet': 'it is a ResNet, not a Vision Transformer',
    'SatCLIP': 'it joins an encoder of images with one of places',
    'ScaleMAE': 'its positions follow the ground sampling distance, which a plain ViT'
    ' would lose',
    'Swin': 'it is a Swin Transformer, without a class token',
    'Tessera': 'it reads time series of single pixels',
    'TileNet': 'it is a ResNet',
    'Unet': 'it is a U-Net',
}

_GROUPS = 'it has tokens for each spectral group'
_INSTEAD = (
    'ViT takes weights of plain Vision Transformers, such as'
    ' ViTSmall16_Weights.SENTINEL2_ALL_MOCO or ViTBase14_DINOv2_Weights'
    '.SENTINEL2_ALL_SOFTCON'
)


class TrainedOn(NamedTuple):
    """The images that weights were trained on."""

    in_channels: int | None
    """C; None if the enum does not say."""
    image_size: int | None
    """Side of an image in pixels; None if the enum does not say."""
    bands: tuple[str, ...] | None
    """Names of the channels, in the order of the weights."""
    value_range: Ends | None
    """Sensor values that are mapped to [0, 1]."""
    mean: tuple[float, ...] | None
    """Mean that is subtracted from values in [0, 1], one for each channel."""
    std: tuple[float, ...] | None
    """Standard deviation that they are then divided by, one for each channel."""


def as_enum(weights: object) -> WeightsEnum | None:
    """Return the weights enum that *weights* is or names; None if it is not an enum.

    Args:
        weights: Whatever `checkpoints.read_state` takes.
    """
    if isinstance(weights, WeightsEnum):
        return weights
    if not isinstance(weights, str) or Path(weights).suffix in SUFFIXES:
        return None
    if not re.fullmatch(r'\w+\.\w+', weights) or timm.is_model(weights):
        return None
    # Slow to import, and only needed for names.
    from torchgeo.models import get_weight

    import torchgeo_explora.models.zoo.weights  # noqa: F401 - registers its names

    try:
        return get_weight(weights)
    except ValueError:
        return None  # `read_state` raises the error


def plain_enum(
    weights: WeightsEnum | PathLike[str] | str | bool,
) -> WeightsEnum | None:
    """Return the weights enum of a plain ViT that *weights* is or names.

    Args:
        weights: Whatever `checkpoints.read_state` takes.

    Returns:
        None if it is something other than an enum.

    Raises:
        ValueError: If its architecture is not a plain ViT; the error says why.
    """
    enum = as_enum(weights)
    if enum is not None and (reason := misfit(enum)):
        instead = _INSTEAD
        if reason == OTHERS['DOFA']:
            instead = 'use torchgeo_explora.models.DOFAViT'
        elif reason == _GROUPS:
            instead = 'use torchgeo_explora.models.GroupChannelViT'
        raise ValueError(
            f'*weights* {enum} cannot be loaded into a plain ViT: {reason}; {instead}'
        )
    return enum


def misfit(weights: WeightsEnum) -> str | None:
    """Return why an enum's architecture is not a plain ViT; None if it is one.

    A user's own enum is assumed to be one if it does not name a timm `model`.
    """
    kind = type(weights).__name__
    for start, reason in OTHERS.items():
        if kind.startswith(start):
            return reason
    model = weights.meta.get('model')
    if not model or not timm.is_model(model):
        return None
    if '_group_' in model:
        return _GROUPS
    home = timm.models.model_entrypoint(model).__module__
    if home.startswith('timm.') and home != 'timm.models.vision_transformer':
        return f'it is a {model}, not a Vision Transformer that ViT knows'
    return None


def trained_on(weights: WeightsEnum) -> TrainedOn:
    """Return what an enum says about its images, for values in [0, 1].

    The `Normalize` steps of its transforms are joined into one, (x - mean) / std of
    sensor values. The range that is mapped to [0, 1] is that of the first step if this
    only divides (by 255, or by 10,000), else that of the sensor: 0 to 10,000 for
    Sentinel-2, and decibels from -34 to 9 (VV) and from -44 to 4 (VH) for Sentinel-1.
    Mean and standard deviation are then chosen to give the same numbers. Unlike in
    TorchGeo's transforms, values outside the range are clipped to it.
    """
    meta = weights.meta
    names = meta.get('bands')
    bands = tuple(names) if names else None
    size = meta.get('img_size')
    count = meta.get('in_chans') or (len(bands) if bands else None)
    steps = _steps(weights.transforms)
    if count is None:
        return TrainedOn(None, size, bands, None, None, None)
    ends = _range(steps, bands, count)
    if ends is None:
        return TrainedOn(count, size, bands, None, None, None)
    mean, std = [0.0] * count, [1.0] * count
    for shift, scale in steps:
        for c in range(count):
            mean[c] += std[c] * shift[c % len(shift)]
            std[c] *= scale[c % len(scale)]
    spans = [high - low for low, high in zip(*ends, strict=True)]
    unit_mean = tuple(
        (m - low) / span for m, low, span in zip(mean, ends[0], spans, strict=True)
    )
    unit_std = tuple(s / span for s, span in zip(std, spans, strict=True))
    return TrainedOn(count, size, bands, ends, unit_mean, unit_std)


def _steps(transforms: Any) -> list[tuple[list[float], list[float]]]:
    """Return mean and standard deviation of every `Normalize`, in their order."""
    parts: Iterable[Any] = getattr(transforms, 'transforms', None) or (
        transforms if isinstance(transforms, Iterable) else [transforms]
    )
    found = []
    for part in parts:
        if type(part).__name__ == 'Normalize':
            # torchvision's has attributes, Kornia's flags.
            flags = getattr(part, 'flags', None) or vars(part)
            found.append((_floats(flags['mean']), _floats(flags['std'])))
    return found


def _floats(values: Any) -> list[float]:
    numbers = values.tolist() if hasattr(values, 'tolist') else values
    several = isinstance(numbers, Sequence)
    return [float(number) for number in numbers] if several else [float(numbers)]


def _range(
    steps: Sequence[tuple[list[float], list[float]]],
    bands: Sequence[str] | None,
    count: int,
) -> Ends | None:
    if steps and not any(steps[0][0]) and len(steps[0][1]) == 1:
        return (0.0,) * count, (steps[0][1][0],) * count
    if bands and all(band in _DECIBELS for band in bands):
        lows, highs = zip(*(_DECIBELS[band] for band in bands), strict=True)
        return lows, highs
    if bands and {'B8A', 'B12'} & {band.upper() for band in bands}:
        low, high = _REFLECTANCE
        return (low,) * count, (high,) * count
    return None
