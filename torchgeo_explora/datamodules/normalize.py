"""Normalisation of a batch, whatever else is in it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Map ``image`` of a batch to (image - mean) / std, and leave the rest alone.

    Series (B, T, C, H, W) are taken too, which Kornia's containers do not do.

    Args:
        mean: A number a channel, or one for all.
        std: Likewise.
        limits: (low, high) that the raw values are clipped to first.
    """

    def __init__(
        self,
        mean: Tensor | Sequence[float],
        std: Tensor | Sequence[float],
        limits: tuple[Sequence[float] | float, Sequence[float] | float] | None = None,
    ) -> None:
        """Keep the statistics."""
        super().__init__()
        self.mean, self.std = _column(mean), _column(std)
        self.limits = None if limits is None else [_column(end) for end in limits]

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with ``image`` normalised, (..., C, H, W)."""
        image = batch['image'].float()
        if self.limits is not None:
            low, high = (end.to(image.device) for end in self.limits)
            image = torch.maximum(torch.minimum(image, high), low)
        mean, std = self.mean.to(image.device), self.std.to(image.device)
        return {**batch, 'image': (image - mean) / std}


def _column(values: Tensor | Sequence[float] | float) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
