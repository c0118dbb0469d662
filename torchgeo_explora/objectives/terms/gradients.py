"""Gradients scaled, reversed and brought to one norm in the backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.functional.ranks import mean_over_ranks


def scale_gradients(features: Tensor, factors: Sequence[float]) -> tuple[Tensor, ...]:
    """Return one copy of *features* for each factor, which scales its gradient.

    In the backward pass, the gradients of all copies are brought to the same norm, the
    mean of the norms that are not 0, and multiplied by their factors; a negative factor
    reverses a gradient (https://arxiv.org/abs/1505.07818). Norms are taken over all
    processes.

    Args:
        features: Any tensor.
        factors: One number for each copy.
    """
    copies: tuple[Tensor, ...] = _Scaled.apply(features, tuple(factors))
    return copies


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factors: tuple[float, ...]) -> Any:
        ctx.factors = factors
        return tuple(features.clone() for _ in factors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        squares = torch.stack([each.float().square().sum() for each in gradients])
        norms = mean_over_ranks(squares).sqrt()
        present = norms > 0
        common = norms.sum() / present.sum().clamp(min=1)
        scales = norms.new_tensor(ctx.factors) * common / norms.where(present, 1)
        parts = [scale * each for scale, each in zip(scales, gradients, strict=True)]
        return torch.stack(parts).sum(0).to(gradients[0].dtype), None
