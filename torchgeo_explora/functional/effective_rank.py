"""How many dimensions features really use: quality without labels."""

import torch
from torch import Tensor


def rankme(features: Tensor, eps: float = 1e-7) -> Tensor:
    """Effective rank of features (RankMe).

    Garrido et al. 2023 (https://arxiv.org/abs/2210.02885): the exponential of the
    entropy of s / sum(s), s the singular values.

    Args:
        features: (B, D), finite.
        eps: Added to each share.

    Returns:
        Scalar in [1, min(B, D)], float32: 1 after a collapse to one direction.

    Raises:
        ValueError: If the features are not a matrix.
    """
    if features.ndim != 2 or not features.numel():
        raise ValueError(f'features are {tuple(features.shape)}, expected (B, D)')
    values = torch.linalg.svdvals(features.double())
    return _effective(values, eps, min(features.shape)).float()


def lidar(features: Tensor, eps: float = 1e-4) -> Tensor:
    """Effective rank of what tells objects apart, relative to how views differ (LiDAR).

    Thilak et al. 2024 (https://arxiv.org/abs/2312.04000): the scatter of the objects'
    means is whitened by the scatter of the views around them, and its eigenvalues are
    read as RankMe reads singular values. Unlike RankMe, it does not count dimensions
    that only hold noise of the views.

    Args:
        features: (n, q, D): q views of each of n objects, both 2 or more.
        eps: Added to the diagonal of the scatter of the views.

    Returns:
        Scalar in [1, min(n - 1, D)], float32.

    Raises:
        ValueError: If there are fewer than two objects or views.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(
            f'features are {tuple(features.shape)}, expected (n, q, D) with two objects'
            ' and two views or more'
        )
    objects, views, width = features.shape
    values = features.double()
    means = values.mean(1)
    between = means - means.mean(0)
    within = (values - means.unsqueeze(1)).flatten(0, 1)
    scatter = within.mT @ within / (objects * views)
    scatter.diagonal().add_(eps)
    # Eigenvalues of W^-1/2 B W^-1/2 are squared singular values of B^1/2 W^-1/2.
    root = torch.linalg.cholesky(scatter)
    whitened = torch.linalg.solve_triangular(root, between.mT, upper=False)
    shares = torch.linalg.svdvals(whitened).square()
    return _effective(shares, 1e-7, min(objects - 1, width)).float()


def _effective(values: Tensor, eps: float, most: int) -> Tensor:
    """Return the exponential of the entropy of the shares of values."""
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
    return torch.special.entr(shares).sum().exp().clamp(1, most)
