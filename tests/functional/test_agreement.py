"""Measures without labels, on embeddings with known answers."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from torchgeo_explora.functional import (
    alignment,
    neighbour_agreement,
    place_retrieval,
    uniformity,
    variance_share,
)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_alignment_is_the_mean_squared_distance_of_unit_vectors():
    first, second = rand(6, 4), rand(6, 4, seed=1)
    expected = sum(
        (a / a.norm() - b / b.norm()).square().sum().item()
        for a, b in zip(first.double(), second.double(), strict=True)
    )
    assert alignment(first, second).item() == pytest.approx(expected / 6, rel=1e-6)
    assert alignment(first, 3 * first).item() == pytest.approx(0, abs=1e-6)
    assert alignment(first, -first).item() == pytest.approx(4, rel=1e-6)


def test_uniformity_is_that_of_the_formula():
    x = normalize(rand(7, 5).double(), dim=1)
    pairs = [
        math.exp(-2 * (x[i] - x[j]).square().sum().item())
        for i in range(7)
        for j in range(i)
    ]
    expected = math.log(sum(pairs) / len(pairs))
    assert uniformity(9 * x.float()).item() == pytest.approx(expected, rel=1e-5)
    assert uniformity(torch.ones(4, 3)).item() == pytest.approx(0, abs=1e-5)


def test_variance_share_counts_the_planted_components():
    planted = rand(50, 3) @ rand(3, 20, seed=1) + 7
    assert variance_share(planted, 3).item() == pytest.approx(1)
    assert variance_share(planted, 2).item() < 1
    isotropic = torch.linalg.qr(rand(41, 40))[0]
    isotropic = isotropic - isotropic.mean(0)
    assert variance_share(isotropic, 10).item() == pytest.approx(0.25, abs=0.03)
    assert variance_share(torch.ones(5, 4)).item() == 1


def test_neighbours_agree_for_equal_views_and_not_for_unrelated_ones():
    first = rand(200, 16)
    rotation = torch.linalg.qr(rand(16, 16, seed=1))[0]
    assert neighbour_agreement(first, first @ rotation).item() == pytest.approx(1)
    by_chance = neighbour_agreement(first, rand(200, 16, seed=2)).item()
    assert by_chance == pytest.approx(10 / 199, abs=0.02)
    # Two images have one neighbour each, however many are asked for.
    assert neighbour_agreement(first[:2], first[:2]).item() == 1


def test_an_image_is_not_its_own_neighbour():
    """Far apart pairs of twins: the one neighbour is the twin, and it changes."""
    first = torch.eye(4)[[0, 0, 1, 1]]
    second = torch.eye(4)[[0, 1, 0, 1]]
    assert neighbour_agreement(first, second, k=1).item() == 0


def test_a_place_is_found_again():
    first = rand(30, 8)
    assert place_retrieval(first, first + 0.01 * rand(30, 8, seed=1)).item() == 1
    assert place_retrieval(first, first.roll(1, 0)).item() == 0


@pytest.mark.parametrize('measure', [alignment, neighbour_agreement, place_retrieval])
def test_views_are_of_the_same_images(measure):
    with pytest.raises(ValueError, match=r'expected \(n, D\) twice'):
        measure(rand(3, 4), rand(4, 4))


def test_one_image_has_no_uniformity():
    with pytest.raises(ValueError, match='2 images or more'):
        uniformity(rand(1, 4))
