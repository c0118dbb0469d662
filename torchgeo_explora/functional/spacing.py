"""Evenly spaced samples, and what they tell of the whole."""

from math import nan

import torch
from torch import Tensor


def evenly_spaced(size: int, most: int) -> list[int]:
    """Return up to *most* of the numbers from 0 to *size* - 1, the ends included.

    Of data that are sorted by class, that is a share of every class.
    """
    return torch.linspace(0, size - 1, min(most, size)).long().tolist()


def middle_values(values: Tensor, tail: float, most: int) -> tuple[float, float]:
    """Return the quantiles *tail* and 1 - *tail* of the finite values; NaN if none.

    Args:
        values: Any shape.
        tail: Share below, and above, what is returned, in [0, 0.5).
        most: Number of values, evenly spaced, that are looked at.
    """
    some = values.flatten()[:: 1 + values.numel() // most].float()
    some = some[some.isfinite()]
    if not len(some):
        return nan, nan
    low, high = some.quantile(some.new_tensor([tail, 1 - tail])).tolist()
    return low, high
