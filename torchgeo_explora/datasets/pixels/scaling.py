"""From sensor values to [0, 1]: the range of a data set."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchgeo_explora.functional.spacing import evenly_spaced

#: (low, high) of the sensor values: one number each, or one for each band.
type ValueRange = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]

#: Usual (low, high) by NumPy's name of the stored type. Values of 16 bits are taken to
#: be surface reflectance times 10,000, as in Sentinel-2 and Landsat products.
RANGES: dict[str, tuple[float, float]] = {
    'uint8': (0.0, 255.0),
    'uint16': (0.0, 10000.0),
    'int16': (0.0, 10000.0),
    'float32': (0.0, 1.0),
    'float64': (0.0, 1.0),
}


def check_range(value_range: Sequence[Any], bands: Sequence[str]) -> ValueRange:
    """Return a range in plain numbers: two floats, or two tuples of floats.

    Args:
        value_range: (low, high), each one number, or one per band.
        bands: Names of the bands.

    Raises:
        ValueError: If there are not two ends, if the numbers do not match the bands,
            or if a low end is not below its high end.
    """
    if len(value_range) != 2:
        raise ValueError(f'*value_range* must be (low, high), not {value_range!r}')
    ends = [torch.as_tensor(end, dtype=torch.float64) for end in value_range]
    for end in ends:
        if end.ndim and end.numel() != len(bands):
            raise ValueError(
                f'*value_range* has {end.numel()} numbers for {len(bands)} bands '
                f'{tuple(bands)}: give one number, or one for each band'
            )
    if not bool((ends[0] < ends[1]).all()):
        raise ValueError(
            f'*value_range* must be (low, high) with low < high, not {value_range!r}'
        )
    if ends[0].ndim == ends[1].ndim == 0:
        return ends[0].item(), ends[1].item()
    low, high = (end.expand(len(bands)).tolist() for end in ends)
    return tuple(low), tuple(high)


def to_unit(image: Tensor, value_range: ValueRange) -> Tensor:
    """Map sensor values (..., C, H, W) to [0, 1], clipped."""
    low, high = (torch.as_tensor(end).view(-1, 1, 1) for end in value_range)
    return ((image - low) / (high - low)).clamp(0, 1)


# Share of a range below which images are almost black.
_DARK = 0.05


def unused_range(lowest: Tensor, highest: Tensor, value_range: ValueRange) -> str:
    """Say that values use almost none of a range, '' if they use enough of it.

    An example is a file of 8-bit values that are stored in 16 bits.

    Args:
        lowest: Lowest value of each band of some images, (C,).
        highest: Highest value of each band, (C,).
        value_range: The (low, high) that they would be mapped from.
    """
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in value_range)
    share = float(((highest - low) / (high - low)).max())
    if share >= _DARK or not bool(highest.any()):
        return ''
    first, last = float(lowest.min()), float(highest.max())
    if first >= 0 and last > 1 and last.is_integer():
        first, last = 0, 2 ** max(8, int(last).bit_length()) - 1
    return (
        f'use less than {_DARK:.0%} of the range up to {float(high.max()):g}: their'
        f' highest value is {float(highest.max()):g}. Pass'
        f' value_range=({first:g}, {last:g}), for instance, or they are almost black'
    )


def measure_range(
    dataset: Dataset[dict[str, Any]], images: int = 256, deviations: float = 2.0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure a range that makes good use of [0, 1].

    SatMAE's rule for Sentinel-2: mean +- 2 standard deviations of each band. The low
    end is not below the lowest value found.

    Args:
        dataset: Data set of `image` (C, H, W).
        images: How many images to read, evenly spaced.
        deviations: Standard deviations on either side of the mean.

    Returns:
        (low, high), each with one number per band: the *value_range* of a data module.
    """
    size = len(dataset)  # type: ignore[arg-type]
    rows = []
    for index in evenly_spaced(size, images):
        # (C, H, W) -> (C, H * W)
        pixels = dataset[index]['image'].flatten(1).double()
        # All images have the same weight: for one size, the mean of means is the mean.
        rows.append(
            torch.stack([pixels.mean(1), pixels.square().mean(1), pixels.amin(1)])
        )
    mean, square, lowest = torch.stack(rows).unbind(1)
    centre = mean.mean(0)
    spread = (square.mean(0) - centre.square()).clamp_min(0).sqrt() * deviations
    # A band without any variation still needs low < high.
    spread = spread.clamp_min(1e-6 * (1 + centre.abs()))
    low = torch.maximum(centre - spread, lowest.amin(0))
    low = torch.minimum(low, centre)
    return tuple(low.tolist()), tuple((centre + spread).tolist())
