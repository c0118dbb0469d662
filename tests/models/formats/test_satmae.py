"""SatMAE's names: every tensor finds its place, to the bit."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.models import GroupChannelViT, TemporalViT
from torchgeo_explora.models.formats.satmae import (
    from_satmae_group,
    from_satmae_temporal,
)

SIZES = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
GROUP = {**SIZES, 'image_size': 16, 'channel_embed_dim': 8}
TEMPORAL = {**SIZES, 'image_size': 32, 'time_embed_dim': 12}
KINDS = {
    'group': (GroupChannelViT, GROUP, from_satmae_group),
    'temporal': (TemporalViT, TEMPORAL, from_satmae_temporal),
}
DECODER = {
    'mask_token': torch.randn(1, 1, 8),
    'decoder_pos_embed': torch.randn(1, 5, 6),
    'decoder_channel_embed': torch.randn(1, 4, 2),
    'decoder_blocks.0.attn.qkv.weight': torch.randn(24, 8),
    'decoder_pred.0.weight': torch.randn(256, 8),
}
HEAD = {'head.weight': torch.randn(3, 24), 'fc_norm.weight': torch.randn(24)}


@pytest.fixture(params=KINDS)
def kind(request):
    """A backbone, a state as published, and the converter."""
    build, arguments, convert = KINDS[request.param]
    backbone = build(**arguments)
    shapes = backbone.canonical_state_dict()
    return backbone, {k: torch.randn(v.shape) for k, v in shapes.items()}, convert


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('rest', [{}, DECODER], ids=['encoder', 'full'])
def test_pretraining_checkpoint(kind, rest):
    backbone, state, convert = kind
    found, others = convert({'model': {**state, **rest}, 'epoch': 199})
    backbone.load_state_dict(found)
    assert_same(dict(backbone.canonical_state_dict()), state)
    assert_same(others, rest)


def test_classifier(kind):
    _, state, convert = kind
    # SatMAE's classifier has fc_norm on the mean token and no final norm.
    state = {k: v for k, v in state.items() if not k.startswith('norm.')}
    found, others = convert(state | HEAD)
    assert_same(found, state)
    assert_same(others, HEAD)


def test_code_of_the_class_token_is_added_to_it():
    state = GroupChannelViT(**GROUP).canonical_state_dict()
    code = torch.randn(1, 1, 8)
    found, rest = from_satmae_group({**state, 'channel_cls_embed': code})
    assert not rest
    assert found.keys() == state.keys()
    assert_close(found['cls_token'][..., 16:], state['cls_token'][..., 16:] + code)
    assert_close(found['cls_token'][..., :16], state['cls_token'][..., :16])


def test_checkpoint_of_another_kind_is_refused():
    group = GroupChannelViT(**GROUP).canonical_state_dict()
    temporal = TemporalViT(**TEMPORAL).canonical_state_dict()
    with pytest.raises(ValueError, match=r'no channel_embed.*use from_satmae_temporal'):
        from_satmae_group(temporal)
    with pytest.raises(ValueError, match=r'SatMAE.s temporal model: use from_satmae_g'):
        from_satmae_temporal(group)
