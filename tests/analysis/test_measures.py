"""Measures of an analysis on features with known answers."""

import math

import pytest
import torch
from torch.nn.functional import one_hot, scaled_dot_product_attention

from torchgeo_explora.analysis import (
    linear_accuracy,
    linear_cka,
    principal_eigenvalues,
    truncated,
)
from torchgeo_explora.analysis.attention import AttentionRecorder, summarize


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_eigenvalues_show_the_planted_rank():
    """Tokens that vary in 3 directions have 3 eigenvalues, up to standardisation."""
    directions = torch.linalg.qr(rand(64, 3))[0]
    directions = directions - directions.mean(0)  # standardising moves no mean then
    base = rand(64, seed=1)
    base = base - base.mean()
    tokens = base + 0.01 * rand(5, 40, 3, seed=2) @ directions.T
    values = principal_eigenvalues(tokens, 10)
    assert values.shape == (5, 10)
    assert (values[:, 2] > 100 * values[:, 3]).all()
    assert (values.diff(dim=1) <= 1e-7).all()


def test_eigenvalues_equal_those_of_the_covariance():
    tokens = rand(2, 30, 8)
    x = torch.nn.functional.layer_norm(tokens.double(), (8,), eps=1e-12)
    expected = torch.stack([torch.linalg.eigvalsh(torch.cov(image.T)) for image in x])
    found = principal_eigenvalues(tokens, 8)
    torch.testing.assert_close(found, expected.flip(1).float())
    # The other form, for fewer tokens than channels.
    wide = principal_eigenvalues(rand(2, 5, 8), 10)
    assert wide.shape == (2, 4)


def test_eigenvalues_are_those_of_any_scale():
    tokens = rand(3, 20, 16)
    torch.testing.assert_close(
        principal_eigenvalues(tokens), principal_eigenvalues(100 * tokens)
    )


@pytest.mark.parametrize('shape', [(3, 1, 8), (4, 8)])
def test_eigenvalues_need_two_tokens(shape):
    with pytest.raises(ValueError, match='two tokens or more'):
        principal_eigenvalues(torch.zeros(shape))


def test_a_planted_position_is_found_and_noise_is_not():
    labels = torch.arange(16).repeat(40)
    planted = one_hot(labels, 16).float() @ rand(16, 24) + 0.1 * rand(640, 24, seed=1)
    half = slice(0, 320), slice(320, 640)
    found = linear_accuracy(
        planted[half[0]], labels[half[0]], planted[half[1]], labels[half[1]], 16
    )
    assert found == 1.0
    noise = rand(640, 24, seed=2)
    found = linear_accuracy(
        noise[half[0]], labels[half[0]], noise[half[1]], labels[half[1]], 16
    )
    assert found < 0.2


def test_the_probe_needs_rows():
    with pytest.raises(ValueError, match='0 rows to train on'):
        linear_accuracy(torch.zeros(0, 4), torch.zeros(0), rand(3, 4), rand(3), 2)


def test_cka_is_1_for_equal_and_rotated_features():
    features = rand(200, 10)
    rotation = torch.linalg.qr(rand(10, 10, seed=1))[0]
    assert linear_cka(features, features) == pytest.approx(1)
    assert linear_cka(features, 3 * features @ rotation + 5) == pytest.approx(1)
    assert linear_cka(features, rand(200, 10, seed=2)) < 0.1
    assert linear_cka(features, torch.ones(200, 4)) == 0


def test_cka_equals_the_form_with_gram_matrices():
    first, second = rand(30, 6), rand(30, 9, seed=1)
    centre = torch.eye(30) - 1 / 30
    k, m = (centre @ x @ x.T @ centre for x in (first, second))
    expected = (k * m).sum() / (k.norm() * m.norm())
    assert linear_cka(first, second) == pytest.approx(expected.item(), abs=1e-5)


def test_cka_compares_the_same_inputs():
    with pytest.raises(ValueError, match='of the same n inputs'):
        linear_cka(rand(3, 4), rand(5, 4))


def test_attention_of_known_weights():
    """Uniform attention has entropy 1; attention to itself has 0, and distance 0."""
    grid = (1, 2, 2)
    uniform = summarize(torch.full((1, 2, 5, 5), 0.2), grid)
    torch.testing.assert_close(uniform.entropy, torch.ones(1))
    # To itself 0, to two neighbours 1, to the diagonal sqrt(2).
    torch.testing.assert_close(uniform.distance, torch.tensor([(2 + 2**0.5) / 4]))
    torch.testing.assert_close(uniform.cls, torch.full((1, 4), 0.2))
    itself = summarize(torch.eye(5).expand(1, 2, 5, 5), grid)
    torch.testing.assert_close(itself.entropy, torch.zeros(1))
    torch.testing.assert_close(itself.distance, torch.zeros(1))


def test_groups_of_one_place_are_not_apart():
    weights = torch.zeros(1, 1, 5, 5)
    weights[..., 1:, 1:] = torch.eye(2).repeat(2, 2) / 2  # the same place, both groups
    assert summarize(weights, (2, 1, 2)).distance.item() == 0


def test_registers_are_left_out():
    """What goes to registers is not entropy over patches."""
    weights = torch.zeros(1, 1, 6, 6)
    weights[..., 1] = 0.9
    weights[..., 2:] = 0.025
    found = summarize(weights, (1, 2, 2))
    torch.testing.assert_close(found.entropy, torch.ones(1))


def test_the_recorder_sees_what_attention_computes():
    query, key = rand(2, 3, 5, 8), rand(2, 3, 5, 8, seed=1)
    value = torch.eye(5).expand(2, 3, 5, 5)
    with AttentionRecorder((1, 2, 2)) as recorder:
        weights = scaled_dot_product_attention(query, key, value)
    (found,) = recorder.found
    torch.testing.assert_close(found.cls, weights[:, :, 0, 1:].mean(1))


def test_scores_beyond_five_standard_deviations_are_cut():
    scores = torch.zeros(1, 1000)
    scores[0, 0] = 1
    scores[0, 1:] += 0.001 * rand(999)
    cut = truncated(scores)
    assert cut.max() == pytest.approx(scores.mean().item() + 5 * scores.std().item())
    torch.testing.assert_close(cut[:, 1:], scores[:, 1:])
    assert math.isfinite(truncated(torch.ones(2, 4)).sum().item())
