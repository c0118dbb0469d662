"""Linear classifiers side by side."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from torchgeo_explora.models.backbones.backbone import Features
from torchgeo_explora.models.heads.probe import ProbeHeads
from torchgeo_explora.tasks.downstream.probe import GRIDS


@pytest.fixture
def features():
    torch.manual_seed(0)
    return [Features(torch.randn(3, 8), torch.randn(3, 4, 8)) for _ in range(4)]


@pytest.mark.parametrize(('name', 'heads'), [('explora', 28), ('dinov2', 52)])
def test_presets_have_the_published_number_of_classifiers(name, heads, features):
    grid = ProbeHeads(8, 5, GRIDS[name])
    assert len(grid.settings) == len(grid.heads) == heads
    assert grid(features).shape == (heads, 3, 5)


def test_widths_are_those_of_a_vit_large():
    grid = ProbeHeads(1024, 2, (0.1,))
    widths = sorted(head.in_features for head in grid.heads.values())
    assert widths == [1024, 2048, 4096, 5120]


def test_rates_follow_the_batch_as_the_references(golden):
    arrays, config = golden('dinov2_eval')
    grid = ProbeHeads(8, 5, config['lrs'], blocks=(1,), averages=(False,))
    rates = [group['lr'] for group in grid.parameter_groups(config['batch'])]
    assert_close(torch.tensor(rates).double(), arrays['out.linear.scaled_lr'])


def test_each_classifier_trains_as_if_it_were_alone(features):
    labels = torch.tensor([0, 1, 2])
    grid = ProbeHeads(8, 3, (0.1, 1.0))
    logits = grid(features)
    sum(cross_entropy(of_head, labels) for of_head in logits).backward()
    for setting, of_head in zip(grid.settings, logits, strict=True):
        head = grid.heads[setting.name]
        (alone,) = torch.autograd.grad(
            cross_entropy(grid(features)[grid.settings.index(setting)], labels),
            [head.weight],
        )
        assert_close(head.weight.grad, alone)
        assert of_head.dtype == torch.float32


def test_a_classifier_given_twice_is_an_error():
    for arguments in [((0.1, 0.1),), ((0.1,), (1, 1)), ((),)]:
        with pytest.raises(ValueError, match='none twice'):
            ProbeHeads(8, 3, *arguments)
