"""Evenly spaced samples, and statistics estimated from them."""

from math import nan

import torch
from torch import Tensor


def evenly_spaced(size: int, most: int) -> list[int]:
    """Return up to *most* of the numbers from 0 to *size* - 1, the ends included.

    If the data are sorted by class, every class gets its share.
    """
    return torch.linspace(0, size - 1, min(most, size)).long().tolist()


def middle_values(values: Tensor, tail: float, most: int) -> tuple[float, float]:
    """Return the quantiles *tail* and 1 - *tail* of the finite values; NaN if none.

    Args:
        values: Any shape.
        tail: Share of the values below the first quantile, and above the second, in
            [0, 0.5).
        most: Largest number of values to use, evenly spaced.
    """
    some = values.flatten()[:: 1 + values.numel() // most].float()
    some = some[some.isfinite()]
    if not len(some):
        return nan, nan
    low, high = some.quantile(some.new_tensor([tail, 1 - tail])).tolist()
    return low, high
