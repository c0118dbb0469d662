"""RankMe and LiDAR on features whose rank is planted."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.functional import lidar, rankme


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _effective(values, eps):
    shares = [value / sum(values) + eps for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares))


def test_rankme_equals_its_formula():
    features = _random(12, 5)
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    expected = torch.tensor(_effective(values, 1e-7), dtype=torch.float32)
    assert_close(rankme(features), expected)


@pytest.mark.parametrize('rank', [1, 3, 8])
def test_rankme_of_planted_directions(rank):
    # Orthogonal directions of equal length.
    basis = torch.linalg.qr(_random(32, 16))[0][:, :rank]
    turn = torch.linalg.qr(_random(16, 16, seed=1))[0][:rank]
    assert_close(rankme(basis @ turn), torch.tensor(float(rank)), rtol=1e-4, atol=1e-4)


def test_rankme_does_not_see_scale_and_stays_in_range():
    features = _random(12, 5)
    assert_close(rankme(100 * features), rankme(features))
    assert rankme(torch.zeros(6, 4)) >= 1
    assert rankme(_random(4, 50)) <= 4
    with pytest.raises(ValueError, match=r'expected \(B, D\)'):
        rankme(_random(5))


def test_lidar_equals_its_formula():
    features = _random(9, 4, 5).double().numpy()
    means = features.mean(1)
    between = means - means.mean(0)
    within = (features - means[:, None]).reshape(-1, 5)
    scatter = within.T @ within / len(within) + 1e-4 * np.eye(5)
    values, vectors = np.linalg.eigh(scatter)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ (between.T @ between / 9) @ root)
    expected = _effective(eigenvalues, 1e-7)
    found = lidar(torch.from_numpy(features))
    assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=0)


def test_lidar_counts_directions_of_objects_not_noise_of_views():
    objects = torch.zeros(64, 1, 16)
    objects[:, 0, :3] = 10 * _random(64, 3)
    noise = _random(64, 8, 16, seed=1)
    found = lidar(objects + noise)
    assert 2.5 < found < 4
    # All directions look alike to RankMe once they have the same scale.
    assert rankme((objects / 10 + noise).flatten(0, 1)) > 12
    with pytest.raises(ValueError, match='two objects'):
        lidar(_random(1, 8, 16))
