"""How alike two representations of the same tokens are."""

import torch
from torch import Tensor


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return the linear centred kernel alignment of two sets of features.

    Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414), in the form with feature
    covariances: 1 for features that are equal up to rotation, shift and one scale, near
    0 for unrelated ones (as long as there are far more rows than columns).

    Args:
        first: (n, D).
        second: (n, D'), features of the same n inputs in the same order.

    Returns:
        A number in [0, 1]; 0 if one set does not vary at all.

    Raises:
        ValueError: If the numbers of rows differ.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(
            f'features are {tuple(first.shape)} and {tuple(second.shape)}, expected'
            " (n, D) and (n, D') of the same n inputs"
        )
    x, y = (part.double() - part.double().mean(0) for part in (first, second))
    between = (x.mT @ y).square().sum()
    within = torch.linalg.matrix_norm(x.mT @ x) * torch.linalg.matrix_norm(y.mT @ y)
    return float(between / within) if within > 0 else 0.0
