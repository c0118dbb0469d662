"""From raw sensor values to [0, 1]."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Largest number of values that `UnitRange.check` looks at.
_LOOKED_AT = 2_000_000


class UnitRange(nn.Module):
    """Map raw sensor values to [0, 1], channel by channel.

    The result is clip((x - low) / (high - low)). NaN, the usual mark of missing data,
    becomes 0, since one such pixel would spread over a whole view; infinities become
    0 or 1.

    Args:
        low: Value that becomes 0; one for all channels, or one per channel.
        high: Value that becomes 1; one for all channels, or one per channel.

    Raises:
        ValueError: If *low* is not below *high*, or their lengths differ.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        low: float | Sequence[float] | Tensor,
        high: float | Sequence[float] | Tensor,
    ) -> None:
        """Check the range."""
        super().__init__()
        lows, highs = (
            torch.as_tensor(value, dtype=torch.float32).flatten()
            for value in (low, high)
        )
        if 1 not in (len(lows), len(highs)) and len(lows) != len(highs):
            raise ValueError(
                f'*low* has {len(lows)} values and *high* has {len(highs)}: give one'
                ' per channel to both, or one for all channels'
            )
        if not (lows < highs).all():
            raise ValueError(
                f'*low* must be below *high* in every channel, got {lows.tolist()} and'
                f' {highs.tolist()}'
            )
        # Arguments, not state: they stay out of checkpoints.
        self.register_buffer('low', lows[:, None, None], persistent=False)
        self.register_buffer('high', highs[:, None, None], persistent=False)

    def of(self, channels: Sequence[int]) -> 'UnitRange':
        """Return the range of some channels, in their order."""
        index = list(channels)
        low, high = (
            end if len(end) == 1 else end[index] for end in (self.low, self.high)
        )
        return UnitRange(low, high)

    def forward(self, image: Tensor) -> Tensor:
        """Return values in [0, 1], finite.

        Args:
            image: Raw values, (..., C, H, W), of any type.

        Returns:
            (..., C, H, W), float32, or float64 if *image* is.

        Raises:
            ValueError: If the image has another number of channels.
        """
        self._require_channels(image)
        unit = (image - self.low).div_(self.high - self.low)
        return unit.clamp_(0, 1).nan_to_num_(0)

    def check(self, image: Tensor) -> bool:
        """Refuse a batch that this range clearly does not fit.

        TorchGeo's data modules without statistics of their own default to 0 to 255,
        even if their files hold reflectance, which would all be clipped to white.

        Args:
            image: Raw values, (..., C, H, W). Only evenly spaced rows of large images
                are checked.

        Returns:
            Whether there are finite values.

        Raises:
            ValueError: If more than half of the finite values lie outside the range.
        """
        self._require_channels(image)
        image = image[..., :: 1 + image.numel() // _LOOKED_AT, :]
        known = image.isfinite()
        outside = ((image < self.low) | (image > self.high)) & known
        share = outside.count_nonzero() / known.count_nonzero().clamp(min=1)
        if share > 0.5:
            values = image[known]
            raise ValueError(
                f'{100 * share:.0f} % of the pixel values lie outside the value range'
                f' {self.low.flatten().tolist()} to {self.high.flatten().tolist()};'
                f' they go from {values.min():.4g} to {values.max():.4g}:'
                ' give *value_range*'
            )
        return bool(known.any())

    def _require_channels(self, image: Tensor) -> None:
        channels = max(len(self.low), len(self.high))
        if channels not in (1, image.shape[-3]):
            raise ValueError(
                f'the value range has {channels} channels, the image has'
                f' {image.shape[-3]} (shape {tuple(image.shape)}): give one *low* and'
                ' *high* per channel, or one for all'
            )


def value_range(datamodule: Any) -> tuple[list[float], list[float]]:
    """Return the range of the sensor values of a TorchGeo data module's images.

    The first rule that applies is used:

    1. The data module or one of its data sets has a `value_range`, (low, high): that
       range.
    2. Its `mean` is 0, or it keeps minima (`min` or `mins`), so that it divides by a
       span: from `mean` to `mean + std`, in either direction.
    3. Its means are below 256 and its standard deviations above 1: 0 to 255, for 8-bit
       images.
    4. Otherwise, for reflectance and similar values: mean +- 2 standard deviations of
       each band, as SatMAE clips Sentinel-2 (Cong et al.,
       https://arxiv.org/abs/2207.08051).

    The rules read statistics, not data; `UnitRange.check` compares the range with a
    batch. They find no useful range for radar in linear units, or for a single band
    with a small mean (EuroSAT's B10): there the user has to give one.

    Args:
        datamodule: Data module with `mean` and `std` of raw values.

    Returns:
        low and high, each with one value for all channels or one per channel.

    Raises:
        ValueError: If the data module has no statistics.
    """
    sets = ('train_dataset', 'val_dataset', 'test_dataset', 'predict_dataset')
    holders = (datamodule, *(getattr(datamodule, name, None) for name in sets))
    stated = (getattr(holder, 'value_range', None) for holder in holders)
    given = next((value for value in stated if value is not None), None)
    if given is not None:
        low, high = (torch.as_tensor(value).flatten() for value in given)
        return low.tolist(), high.tolist()
    mean, std = (getattr(datamodule, name, None) for name in ('mean', 'std'))
    if mean is None or std is None:
        raise ValueError(
            f'{type(datamodule).__name__} has no *mean* and *std*: give *value_range*'
            ' as [low, high], e.g. [0, 255]'
        )
    mean, std = torch.broadcast_tensors(
        torch.as_tensor(mean, dtype=torch.float64).flatten(),
        torch.as_tensor(std, dtype=torch.float64).flatten(),
    )
    spans = any(hasattr(datamodule, name) for name in ('min', 'mins'))
    if spans or not mean.any():
        ends = torch.stack([mean, mean + std])
    elif mean.max() < 256 and std.max() > 1:
        ends = torch.tensor([[0.0], [255.0]])
    else:
        ends = torch.stack([mean - 2 * std, mean + 2 * std])
    low, high = ends.sort(dim=0).values
    return low.tolist(), high.tolist()
