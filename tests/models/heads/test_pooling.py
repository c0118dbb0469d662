"""Pooled tokens and maps of them."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from torchgeo_explora.models.backbones.backbone import Features
from torchgeo_explora.models.heads.pooling import PooledHead, probe_input, token_map


@pytest.mark.parametrize('blocks', [1, 4])
@pytest.mark.parametrize('average', [0, 1])
def test_probe_input_is_the_references(golden, blocks, average):
    arrays, _ = golden('dinov2_eval')
    features = [
        Features(arrays[f'in.linear.{i}.cls'], arrays[f'in.linear.{i}.patch'])
        for i in range(4)
    ]
    expected = arrays[f'out.linear.nblocks{blocks}.avgpool{average}']
    assert_close(probe_input(features, blocks, bool(average)), expected)


def test_more_blocks_than_there_are_is_an_error():
    features = [Features(torch.zeros(1, 2), torch.zeros(1, 3, 2))]
    with pytest.raises(ValueError, match=r'\*blocks\* 2 must be within 1\.\.1'):
        probe_input(features, 2, False)


def test_token_map_keeps_places_and_averages_groups():
    tokens = torch.arange(12.0).view(1, 12, 1)
    one = token_map(tokens[:, :6], (2, 3))
    assert_close(one[0, 0], torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    both = token_map(tokens, (2, 3))
    assert_close(both[0, 0], torch.tensor([[3.0, 4, 5], [6, 7, 8]]))


def test_mean_pooling_is_before_the_final_norm(tiny_backbone):
    image = torch.randn(2, 3, 32, 32)
    nn.init.normal_(tiny_backbone.norm.weight)
    tokens = tiny_backbone.embed(image)
    x = tiny_backbone.blocks(tiny_backbone.enter(tokens.content, tokens.position)[0])
    head = PooledHead(tiny_backbone, 5, 'mean')
    nn.init.normal_(head.linear.weight)
    pooled = nn.functional.layer_norm(x[:, 1:].mean(1), (24,), eps=1e-6)
    assert_close(head(tiny_backbone(image)), head.linear(pooled))
    assert not any(p.requires_grad for p in head.norm.parameters())


def test_cls_pooling_is_after_the_final_norm(tiny_backbone):
    image = torch.randn(2, 3, 32, 32)
    expected = tiny_backbone(image).cls
    head = PooledHead(tiny_backbone, 5, 'cls')
    nn.init.normal_(head.linear.weight)
    assert_close(head(tiny_backbone(image)), head.linear(expected))


def test_head_starts_undecided(tiny_backbone):
    head = PooledHead(tiny_backbone, 5)
    logits = head(tiny_backbone(torch.randn(2, 3, 32, 32)))
    assert logits.abs().max() < 1e-3
    with pytest.raises(ValueError, match=r"\*pooling\* is 'max'"):
        PooledHead(tiny_backbone, 5, 'max')
