"""Numbers that are evenly spaced."""

import torch


def evenly_spaced(size: int, most: int) -> list[int]:
    """Return up to *most* of the numbers from 0 to *size* - 1, the ends included.

    Of data that are sorted by class, that is a share of every class.
    """
    return torch.linspace(0, size - 1, min(most, size)).long().tolist()
