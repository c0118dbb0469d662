"""Gradients on the way back: reversed, scaled, of one norm."""

import torch
from torch.testing import assert_close

from torchgeo_explora.objectives.terms.gradients import scale_gradients


def _backward(features, gradients, factors):
    features = features.clone().requires_grad_()
    copies = scale_gradients(features, factors)
    assert all(torch.equal(copy, features) for copy in copies)
    torch.autograd.backward(copies, gradients)
    return features.grad


def test_a_single_gradient_is_scaled_and_reversed_by_its_factor():
    features, gradient = torch.randn(3, 4), torch.randn(3, 4)
    for factor in (0.5, -0.25):
        found = _backward(features, [gradient], [factor])
        assert_close(found, factor * gradient)


def test_gradients_are_brought_to_the_mean_of_their_norms():
    features = torch.zeros(2)
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])]
    found = _backward(features, gradients, [1.0, -0.5])
    assert_close(found, torch.tensor([2.0, -1.0]))


def test_a_gradient_of_0_takes_no_part():
    features = torch.zeros(2)
    gradients = [torch.tensor([3.0, 0.0]), torch.zeros(2)]
    assert_close(_backward(features, gradients, [1.0, 1.0]), gradients[0])
    assert_close(_backward(features, [torch.zeros(2)] * 2, [1.0, 1.0]), torch.zeros(2))


def test_a_copy_that_nothing_uses_has_a_gradient_of_0():
    features = torch.zeros(2, requires_grad=True)
    first, _ = scale_gradients(features, [1.0, 1.0])
    first.sum().backward()
    assert_close(features.grad, torch.ones(2))
