"""Gram anchoring and SIGReg, against plain loops in float64."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from torchgeo_explora.functional import gram_loss, sigreg


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _gram(student, anchor):
    total, count = 0.0, 0
    for image in range(len(student)):
        for i in range(student.shape[1]):
            for j in range(student.shape[1]):
                cosines = [
                    float(f[image, i] @ f[image, j])
                    / float(f[image, i].norm() * f[image, j].norm())
                    for f in (student.double(), anchor.double())
                ]
                total += (cosines[0] - cosines[1]) ** 2
                count += 1
    return total / count


def test_gram_loss_is_the_mean_over_pairs_of_patches():
    student, anchor = _random(2, 5, 7), _random(2, 5, 7, seed=1)
    expected = torch.tensor(_gram(student, anchor), dtype=torch.float32)
    assert_close(gram_loss(student, anchor), expected)


def test_gram_loss_does_not_see_scale_or_rotation():
    student = _random(2, 5, 7)
    turn = torch.linalg.qr(_random(7, 7, seed=2))[0]
    assert_close(gram_loss(3 * student @ turn, student), torch.tensor(0.0))
    # The anchor may be of another width.
    assert gram_loss(student, _random(2, 5, 3)) > 0


def test_gram_loss_is_float32_under_autocast():
    student, anchor = _random(2, 5, 7), _random(2, 5, 7, seed=1)
    with torch.autocast('cpu', torch.bfloat16):
        found = gram_loss(student, anchor)
    assert found.dtype == torch.float32
    assert_close(found, gram_loss(student, anchor))


def test_gram_loss_of_other_patches_is_refused():
    with pytest.raises(ValueError, match='same images and patches'):
        gram_loss(_random(2, 5, 7), _random(2, 4, 7))


def _sigreg(features, directions, knots, limit):
    total = 0.0
    step = 2 * limit / (knots - 1)
    for direction in directions.double().T:
        projected = (features.double() @ direction).tolist()
        heights = []
        for k in range(knots):
            t = -limit + k * step
            real = sum(math.cos(t * x) for x in projected) / len(projected)
            imaginary = sum(math.sin(t * x) for x in projected) / len(projected)
            normal = math.exp(-(t**2) / 2)
            heights.append(((real - normal) ** 2 + imaginary**2) * normal)
        total += step * (sum(heights) - (heights[0] + heights[-1]) / 2)
    return total / directions.shape[1]


@pytest.mark.parametrize(('knots', 'limit'), [(17, 5.0), (9, 3.0)])
def test_sigreg_is_the_integral_along_each_direction(knots, limit):
    features = _random(6, 4)
    directions = torch.nn.functional.normalize(_random(4, 3, seed=1), dim=0)
    expected = _sigreg(features, directions, knots, limit)
    found = sigreg(features, directions, knots, limit)
    assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_sigreg_is_small_for_normal_features_and_large_after_a_collapse():
    directions = torch.nn.functional.normalize(_random(8, 16, seed=1), dim=0)
    normal = sigreg(_random(2000, 8), directions)
    assert normal < 0.01
    assert sigreg(torch.zeros(2000, 8), directions) > 10 * normal
    assert sigreg(_random(2000, 8) * 5, directions) > 10 * normal
    # One feature per device is enough for a gradient.
    one = _random(1, 8).requires_grad_()
    sigreg(one, directions).backward()
    assert one.grad.abs().sum() > 0


def test_gradients_are_those_of_the_values():
    directions = torch.nn.functional.normalize(_random(4, 3, seed=1), dim=0)
    # In float32, since both work in it.
    kwargs = {'eps': 1e-2, 'atol': 1e-2, 'rtol': 1e-2, 'nondet_tol': 0.0}
    features = _random(3, 4).requires_grad_()
    assert gradcheck(lambda x: sigreg(x, directions), (features,), **kwargs)
    student, anchor = _random(1, 3, 4).requires_grad_(), _random(1, 3, 4, seed=3)
    assert gradcheck(lambda x: gram_loss(x, anchor), (student,), **kwargs)


def test_sigreg_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r'must be \(B, D\) and \(D, S\)'):
        sigreg(_random(6, 4), _random(5, 3))
