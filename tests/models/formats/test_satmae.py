"""SatMAE's names -> ours -> SatMAE's names keeps every bit."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.models import GroupChannelViT, TemporalViT
from torchgeo_explora.models.formats.satmae import (
    from_satmae_group,
    from_satmae_temporal,
    to_satmae_group,
    to_satmae_temporal,
)

SIZES = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
GROUP = {**SIZES, 'image_size': 16, 'channel_embed_dim': 8}
TEMPORAL = {**SIZES, 'image_size': 32, 'time_embed_dim': 12}
KINDS = {
    'group': (GroupChannelViT, GROUP, from_satmae_group, to_satmae_group),
    'temporal': (TemporalViT, TEMPORAL, from_satmae_temporal, to_satmae_temporal),
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
    """A class, its arguments, a state as published, and both converters."""
    build, arguments, convert, undo = KINDS[request.param]
    shapes = build(**arguments).canonical_state_dict()
    return (
        build(**arguments),
        {k: torch.randn(v.shape) for k, v in shapes.items()},
        (
            convert,
            undo,
        ),
    )


@pytest.mark.parametrize('rest', [{}, DECODER], ids=['encoder', 'full'])
def test_pretraining_checkpoint(kind, rest):
    backbone, state, (convert, undo) = kind
    published = {**state, **rest}
    found, others = convert({'model': published, 'epoch': 199})
    backbone.load_state_dict(found)
    assert others.keys() == rest.keys()
    again = undo(backbone.canonical_state_dict(), others)
    assert again.keys() == published.keys()
    assert_close(again, published, rtol=0, atol=0)


def test_classifier(kind):
    _, state, (convert, undo) = kind
    published = {k: v for k, v in state.items() if not k.startswith('norm.')} | HEAD
    again = undo(*convert(published))
    assert again.keys() == published.keys()
    assert_close(again, published, rtol=0, atol=0)


def test_code_of_the_class_token_returns_inside_of_it():
    state = GroupChannelViT(**GROUP).canonical_state_dict()
    code = torch.randn(1, 1, 8)
    found, rest = from_satmae_group({**state, 'channel_cls_embed': code})
    again = to_satmae_group(found, rest)
    assert again.keys() == state.keys()
    assert_close(again['cls_token'][..., 16:], state['cls_token'][..., 16:] + code)
    assert_close(again['cls_token'][..., :16], state['cls_token'][..., :16])


def test_missing_and_unknown_keys_are_all_listed(kind):
    _, state, (_, undo) = kind
    del state['norm.bias'], state['cls_token']
    state['blocks.0.ls1.gamma'] = torch.ones(24)
    with pytest.raises(ValueError, match=r'missing cls_token, norm.bias; .*ls1.gamma'):
        undo(state)
