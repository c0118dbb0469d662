"""A head that the first batch starts: what it returns is white, and it happens once."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.models import ViT
from torchgeo_explora.models.heads.dino import DINOHead
from torchgeo_explora.objectives import DINOv2
from torchgeo_explora.objectives.terms.whitening import whiten_


@pytest.fixture
def head():
    torch.manual_seed(0)
    return DINOHead(24, 16, hidden_dim=32, bottleneck_dim=8)


def test_outputs_are_white(head):
    """Tokens far from the origin, as those of a backbone are."""
    tokens = 3 + torch.randn(500, 24)
    before = head.bottleneck(tokens)
    whiten_(head, [tokens])
    outputs = head.mlp(tokens)
    assert_close(outputs.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    assert_close(torch.cov(outputs.T, correction=0), torch.eye(8), atol=1e-3, rtol=0)
    # A random head has all in one direction, a white one on all sides.
    assert (before @ before.T).mean() > 0.9
    after = head.bottleneck(tokens)
    assert (after @ after.T).mean().abs() < 0.05


def test_each_kind_counts_alike(head):
    """Ten times the patches weigh as much as the class tokens."""
    cls, patch = torch.randn(200, 24) + 2, torch.randn(2000, 24) - 1
    twin = DINOHead(24, 16, hidden_dim=32, bottleneck_dim=8)
    twin.load_state_dict(head.state_dict())
    whiten_(head, [cls, patch])
    whiten_(twin, [cls, torch.cat([patch, patch])])
    assert_close(head.state_dict(), twin.state_dict(), atol=1e-3, rtol=1e-3)
    means = torch.stack([head.mlp(kind).mean(0) for kind in (cls, patch)])
    assert_close(means.mean(0), torch.zeros(8), atol=1e-4, rtol=0)


@pytest.mark.parametrize('rows', [0, 5], ids=['none masked', 'blank'])
def test_nothing_to_tell_apart(head, rows):
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    whiten_(head, [torch.ones(5, 24), torch.ones(rows, 24)])
    assert_close(head.state_dict(), state, atol=0, rtol=0)


def test_no_rows_at_all(head):
    whiten_(head, [torch.ones(0, 24)])


def test_what_is_not_finite_changes_nothing(head):
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    whiten_(head, [torch.full((4, 24), torch.nan)])
    assert_close(head.state_dict(), state, atol=0, rtol=0)


def test_few_rows_stay_finite(head):
    tokens = torch.randn(3, 24)
    whiten_(head, [tokens])
    assert head.mlp(tokens).isfinite().all()
    assert head.mlp[-1].weight.abs().max() < 1e4


@pytest.mark.parametrize('own', [None, {'prototypes': 16, 'bottleneck_dim': 6}])
def test_only_in_the_first_step(own):
    torch.manual_seed(0)
    student = ViT(
        'vit_tiny_patch16_224',
        image_size=16,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
    )
    adapt(student, Adaptation(adapter=lora(2)))
    objective = DINOv2(
        student,
        prototypes=16,
        hidden_dim=32,
        bottleneck_dim=8,
        ibot_head=own,
        whiten_head=True,
    )
    views = torch.randn(2, 6, 3, 16, 16), torch.empty(0, 6, 3, 8, 8)
    mask = torch.zeros(12, 4, dtype=torch.bool)
    mask[:, 0] = True
    random = objective.head.mlp[-1].weight.clone()
    objective.terms(*views, mask, 0.04, progress=0.5)
    assert torch.equal(objective.head.mlp[-1].weight, random)
    objective.terms(*views, mask, 0.04)
    assert objective.state_dict()['whitened']
    white = objective.head.mlp[-1].weight.clone()
    assert not torch.equal(white, random)
    assert torch.equal(objective.teacher_head.mlp[-1].weight, white)
    if own:
        pair = objective.ibot_head, objective.teacher_ibot_head
        assert torch.equal(*(each.mlp[-1].weight for each in pair))
    objective.terms(*views, mask, 0.04)
    assert torch.equal(objective.head.mlp[-1].weight, white)
