"""Embeddings as points on a sheet."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

#: (n, 2) coordinates.
type Points = NDArray[np.float64]


def project(features: Tensor, seed: int = 0) -> tuple[Points, str]:
    """Return a point in the plane for every embedding, and how it was found.

    UMAP if it is installed, else scikit-learn's t-SNE, else the first two principal
    components; all on L2-normalised embeddings, that is, by cosine similarity.

    Args:
        features: (n, D), n at least 2.
        seed: Seed of UMAP and t-SNE.

    Returns:
        (n, 2), centred, with the larger standard deviation 1; and 'UMAP', 't-SNE' or
        'PCA'.

    Raises:
        ValueError: If there is only one embedding.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f'features are {tuple(features.shape)}, expected (n, D) of 2 images or more'
        )
    x = normalize(features.double().cpu(), dim=-1).numpy()
    count = len(x)
    name, found = 'PCA', _components(x)
    # Fewer points have no neighbourhoods to preserve.
    if count >= 20 and found.std() > 0:
        if (umap := _umap()) is not None:
            name = 'UMAP'
            neighbours = min(15, count - 1)
            found = umap(n_neighbors=neighbours, random_state=seed).fit_transform(x)
        elif (tsne := _tsne()) is not None:
            name = 't-SNE'
            start = found / found[:, 0].std() * 1e-4
            perplexity = min(30.0, (count - 1) / 3)
            found = tsne(
                init=start, perplexity=perplexity, random_state=seed
            ).fit_transform(x)
    found = found - found.mean(0)
    return found / max(found.std(0).max(), 1e-12), name


def turned(points: Points, like: Points) -> Points:
    """Return points rotated, or mirrored, to lie as close as possible to others.

    Directions in a map have no meaning: two maps of the same images can then be
    compared.

    Args:
        points: (n, 2), centred.
        like: (n, 2), points of the same images in another map, centred.
    """
    u, _, v = np.linalg.svd(points.T @ like)
    rotated: Points = points @ u @ v
    return rotated


def _components(x: Points) -> Points:
    """Return the first two principal components, always with the same signs."""
    x = x - x.mean(0)
    u, s, v = torch.linalg.svd(torch.from_numpy(x), full_matrices=False)
    signs = torch.where(v[:2].sum(-1) < 0, -1.0, 1.0)
    points = (u * s)[:, :2] * signs
    if points.shape[1] < 2:
        points = torch.nn.functional.pad(points, (0, 1))
    found: Points = points.numpy()
    return found


def _umap() -> Any:
    try:
        from umap import UMAP
    except ImportError:
        return None
    return UMAP


def _tsne() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return None
    return TSNE
