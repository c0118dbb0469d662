"""Quality of embeddings without labels: rank, spread, and agreement of views."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


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
    """Effective rank of the differences between objects, relative to views (LiDAR).

    Thilak et al. 2024 (https://arxiv.org/abs/2312.04000): the scatter of the objects'
    means is whitened by the scatter of the views around them, and its eigenvalues are
    treated as RankMe treats singular values. Unlike RankMe, it does not count
    dimensions that only contain noise between views.

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


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance between the embeddings of two views of the same images.

    Wang & Isola 2020 (https://arxiv.org/abs/2005.10242), for L2-normalised embeddings.

    Args:
        first: (n, D).
        second: (n, D), the other view of the same images.

    Returns:
        Scalar in [0, 4], float32; 0 where views make no difference.

    Raises:
        ValueError: If the shapes differ.
    """
    _require_pairs(first, second)
    gap = normalize(first.float(), dim=-1) - normalize(second.float(), dim=-1)
    return gap.square().sum(-1).mean()


def uniformity(features: Tensor, t: float = 2.0) -> Tensor:
    """Logarithm of the mean of exp(-t d^2) over all pairs of images, d their distance.

    Wang & Isola 2020 (https://arxiv.org/abs/2005.10242), for L2-normalised embeddings.

    Args:
        features: (n, D), 2 images or more.
        t: Scale of the kernel.

    Returns:
        Scalar in [-4 t, 0], float32: 0 after a collapse to a point, about -2 t at most
        for directions without any preference.

    Raises:
        ValueError: If there is only one image.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f'features are {tuple(features.shape)}, expected (n, D) of 2 images or more'
        )
    x = normalize(features.float(), dim=-1)
    # Unit vectors: |x - y|^2 = 2 - 2 x y.
    square = (2 - 2 * (x @ x.mT)).clamp_min(0)
    pairs = torch.ones_like(square, dtype=torch.bool).triu(1)
    count = torch.tensor(float(len(x) * (len(x) - 1) // 2), device=x.device)
    return torch.logsumexp(-t * square[pairs], 0) - count.log()


def variance_share(features: Tensor, count: int = 8) -> Tensor:
    """Share of the variance that lies along the first principal components.

    Args:
        features: (n, D), 2 images or more.
        count: Number of components.

    Returns:
        Scalar in [0, 1], float32: 1 where *count* directions hold everything; also 1
        where nothing varies.
    """
    x = features.double()
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    total = values.sum()
    if total == 0:
        return torch.ones((), device=features.device)
    return (values[:count].sum() / total).float()


def neighbour_agreement(first: Tensor, second: Tensor, k: int = 10) -> Tensor:
    """Share of an image's neighbours that two views of all images have in common.

    The k nearest other images by cosine similarity are found twice: among the first
    views and among the second ones. The result is the share that is in both lists,
    averaged over the images.

    Args:
        first: (n, D).
        second: (n, D), the other view of the same images.
        k: Number of neighbours; at most n - 1 are used.

    Returns:
        Scalar in [0, 1], float32; about k / (n - 1) by chance.

    Raises:
        ValueError: If the shapes differ, or there is only one image.
    """
    _require_pairs(first, second)
    count = min(k, len(first) - 1)
    lists = []
    for features in (first, second):
        x = normalize(features.float(), dim=-1)
        similarity = (x @ x.mT).fill_diagonal_(-torch.inf)
        near = torch.zeros_like(similarity, dtype=torch.bool)
        lists.append(near.scatter_(1, similarity.topk(count).indices, True))
    return (lists[0] & lists[1]).sum(1).float().mean() / count


def place_retrieval(first: Tensor, second: Tensor) -> Tensor:
    """Share of images whose nearest second view is their own.

    Args:
        first: (n, D).
        second: (n, D), the other view of the same images.

    Returns:
        Scalar in [0, 1], float32; 1 / n by chance.

    Raises:
        ValueError: If the shapes differ, or there is only one image.
    """
    _require_pairs(first, second)
    x, y = (normalize(part.float(), dim=-1) for part in (first, second))
    nearest = (x @ y.mT).argmax(1)
    return (nearest == torch.arange(len(x), device=x.device)).float().mean()


def _require_pairs(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f'views are {tuple(first.shape)} and {tuple(second.shape)}, expected (n, D)'
            ' twice, of 2 images or more'
        )
