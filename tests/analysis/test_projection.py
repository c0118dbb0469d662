"""Maps of embeddings."""

import numpy as np
import pytest
import torch

from torchgeo_explora.analysis import projection
from torchgeo_explora.analysis.projection import project, turned


def clusters(count=20):
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 16, generator=generator)
    return centres.repeat_interleave(count, 0) + 0.1 * torch.randn(
        3 * count, 16, generator=generator
    )


@pytest.mark.parametrize('method', ['t-SNE', 'PCA'])
def test_clusters_stay_together(method, monkeypatch):
    monkeypatch.setattr(projection, '_umap', lambda: None)
    if method == 'PCA':
        monkeypatch.setattr(projection, '_tsne', lambda: None)
    else:
        pytest.importorskip('sklearn')
    points, name = project(clusters())
    assert name == method
    assert points.shape == (60, 2)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-5)
    groups = points.reshape(3, 20, 2)
    within = np.linalg.norm(groups - groups.mean(1, keepdims=True), axis=-1).max()
    centres = groups.mean(1)
    between = min(np.linalg.norm(centres[i] - centres[i - 1]) for i in range(3))
    assert within < between / 2


@pytest.mark.parametrize('features', [torch.ones(30, 4), torch.eye(2)])
def test_few_or_equal_embeddings_have_a_map(features):
    points, name = project(features)
    assert name == 'PCA'
    assert np.isfinite(points).all()


def test_one_embedding_has_none():
    with pytest.raises(ValueError, match='2 images or more'):
        project(torch.ones(1, 4))


def test_a_turned_map_lies_like_the_other():
    points, _ = project(clusters())
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(
        turned(points @ turn * [1, 1], points), points, atol=1e-6
    )
    np.testing.assert_allclose(turned(points * [1, -1], points), points, atol=1e-6)
