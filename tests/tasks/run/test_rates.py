"""Learning rates by layer."""

import pytest
from torch import nn

from torchgeo_explora.adapt import Adaptation, adapt
from torchgeo_explora.tasks.run.optimizer import layer_groups


def rates(groups):
    return {id(p): (g['lr'], g['weight_decay']) for g in groups for p in g['params']}


def test_rates_are_those_of_mae(tiny_backbone):
    head = nn.Linear(24, 2)
    found = rates(layer_groups(tiny_backbone, head.parameters(), 1.0, 0.75, 0.05))
    block = tiny_backbone.blocks[1]
    # 3 blocks: embeddings are layer 0, blocks 1 to 3, the rest 4.
    expected = {
        tiny_backbone.cls_token: (0.75**4, 0.0),
        tiny_backbone.pos_embed: (0.75**4, 0.0),
        tiny_backbone.patch_embed.proj.weight: (0.75**4, 0.05),
        block.mlp.fc1.weight: (0.75**2, 0.05),
        block.mlp.fc1.bias: (0.75**2, 0.0),
        tiny_backbone.norm.weight: (1.0, 0.0),
        head.weight: (1.0, 0.05),
        head.bias: (1.0, 0.0),
    }
    for parameter, wanted in expected.items():
        assert found[id(parameter)] == pytest.approx(wanted)
    assert len(found) == len([*tiny_backbone.parameters()]) + 2


def test_only_what_trains_is_in_a_group(tiny_backbone):
    adapt(tiny_backbone, Adaptation((), norms=False, cls_token=False))
    groups = layer_groups(tiny_backbone, [], 1.0, 1.0, 0.0)
    trained = {id(p) for p in tiny_backbone.parameters() if p.requires_grad}
    assert rates(groups).keys() == trained
    assert {group['lr'] for group in groups} == {1.0}
