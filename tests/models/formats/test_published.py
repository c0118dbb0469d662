"""Names of published files: every tensor finds its place, to the bit."""

import pytest
import timm
import torch
from torch.testing import assert_close

from torchgeo_explora.models import ViT
from torchgeo_explora.models.formats.names import split_qkv
from torchgeo_explora.models.formats.published import (
    from_dinov2,
    from_explora,
    from_mae,
    from_timm,
    to_dinov2,
    to_timm,
)

MODEL = 'vit_small_patch14_dinov2'
TINY = {'image_size': 28, 'embed_dim': 24, 'depth': 4, 'num_heads': 2}
HEADS = {'dino_head.mlp.0.bias': torch.ones(3), 'ibot_head.mlp.0.bias': torch.ones(4)}


def tensors(model=MODEL, **options):
    """Random values under the names of a ViT: equal tensors would hide a swap."""
    shapes = ViT(model, **{**TINY, **options}).canonical_state_dict()
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v.shape, generator=generator) for k, v in shapes.items()}


@pytest.fixture(scope='module')
def dinov2():
    """A released file of DINOv2: flat, with a mask token."""
    return {**tensors(), 'mask_token': torch.zeros(1, 24)}


@pytest.fixture(scope='module')
def mae():
    """A full file of MAE."""
    decoder = {
        'mask_token': torch.randn(1, 1, 8),
        'decoder_pos_embed': torch.randn(1, 5, 8),
        'decoder_embed.weight': torch.randn(8, 24),
        'decoder_blocks.0.attn.qkv.weight': torch.randn(24, 8),
        'decoder_norm.bias': torch.randn(8),
        'decoder_pred.weight': torch.randn(14, 8),
    }
    return {**tensors('vit_base_patch16_224.mae', image_size=32), **decoder}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert_close(found, expected, rtol=0, atol=0)


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


def prefixed(state, prefix):
    return {f'{prefix}{key}': value for key, value in state.items()}


def chunked(state, size):
    """Name blocks as DINOv2's training states do: chunk first, then absolute index."""
    return {
        f'blocks.{int(key.split(".")[1]) // size}.{key.removeprefix("blocks.")}'
        if key.startswith('blocks.')
        else key: value
        for key, value in state.items()
    }


def test_released_dinov2(dinov2):
    backbone, rest = from_dinov2(dinov2)
    ViT(MODEL, **TINY).load_state_dict(backbone)
    assert_same(backbone, without(dinov2, 'mask_token'))
    assert_same(to_dinov2(backbone, rest), dinov2)
    assert_same(to_dinov2(split_qkv(backbone), rest), dinov2)


def weights_of(tensors):
    return {
        key.removeprefix('sd.'): value
        for key, value in tensors.items()
        if key.startswith('sd.')
    }


def test_names_of_the_reference_come_back_to_the_bit(golden):
    published = {}
    for name in ('dinov2_vit_position', 'dinov2_vit_blocks', 'dinov2_vit'):
        tensors, config = golden(name)
        published |= weights_of(tensors)
    # The reference's own table is stored in part; this one is for 98 x 98 pixels.
    published['pos_embed'] = tensors['out.l98.pos_embed_used']
    backbone, rest = from_dinov2(published)
    sizes = {key: config['model'][key] for key in ('embed_dim', 'depth', 'num_heads')}
    vit = ViT(MODEL, image_size=98, **sizes)
    vit.load_state_dict(backbone)
    assert_same(to_dinov2(vit.canonical_state_dict(), rest), published)


def test_registers_of_the_reference_keep_their_names(golden):
    published = weights_of(golden('dinov2_vit_registers')[0])
    found = to_dinov2(*from_dinov2(published))
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in published.items()
    }
    moved = ('cls_token', 'pos_embed')
    assert_same(without(found, *moved), without(published, *moved))


def test_teacher_file_of_dinov2(dinov2):
    teacher = {**prefixed(dinov2, 'backbone.'), **HEADS}
    backbone, rest = from_dinov2({'teacher': teacher})
    assert_same(backbone, without(dinov2, 'mask_token'))
    assert_same(rest, {**HEADS, 'mask_token': dinov2['mask_token']})


@pytest.mark.parametrize('chunks', [2, 4])
def test_training_state_of_dinov2(dinov2, chunks):
    half = {key: value + 1 for key, value in dinov2.items()}
    size = 4 // chunks
    student = prefixed(chunked(half, size), 'student.backbone.')
    student |= prefixed(HEADS, 'student.')
    teacher = prefixed(chunked(dinov2, size), 'teacher.backbone.')
    teacher |= prefixed(HEADS, 'teacher.')
    center = {'dino_loss.center': torch.ones(1, 3)}
    state = student | teacher | center
    backbone, rest = from_dinov2({'model': state, 'iteration': 3})
    assert_same(backbone, without(dinov2, 'mask_token'))
    mask_token = {'mask_token': dinov2['mask_token']}
    assert_same(rest, student | center | HEADS | mask_token)


def test_gated_dinov2():
    state = tensors('vit_giant_patch14_dinov2')
    published = {
        key.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3'): value
        for key, value in state.items()
    }
    backbone, rest = from_dinov2(published)
    assert_same(backbone, state)
    assert_same(to_dinov2(backbone, rest), published)


def test_registers_of_dinov2_return_as_the_same_model(dinov2):
    published = {**dinov2, 'register_tokens': torch.randn(1, 4, 24)}
    backbone, rest = from_dinov2(published)
    found = to_dinov2(backbone, rest)
    assert found.keys() == published.keys()
    # The class token's position has moved into the class token.
    token, table = found['cls_token'], found['pos_embed']
    assert (table[:, 0] == 0).all()
    total = published['cls_token'] + published['pos_embed'][:, :1]
    assert_close(token, total, rtol=0, atol=0)
    assert_close(table[:, 1:], published['pos_embed'][:, 1:], rtol=0, atol=0)
    assert_same(from_dinov2(found)[0], backbone)


@pytest.mark.parametrize('full', [False, True])
def test_mae(mae, full):
    names = mae if full else {k: v for k, v in mae.items() if 'decoder' not in k}
    backbone, rest = from_mae({'model': names})
    decoder = {k: v for k, v in names.items() if 'decoder' in k or k == 'mask_token'}
    assert_same(rest, decoder)
    assert_same(backbone, without(names, *decoder))


def test_explora_encoder(dinov2):
    backbone, rest = from_explora({'model': dinov2})
    assert_same(backbone, without(dinov2, 'mask_token'))
    assert_same(rest, {'mask_token': dinov2['mask_token']})


def projections(state):
    return {
        key.replace('.q.', '.q_proj.')
        .replace('.k.', '.k_proj.')
        .replace('.v.', '.v_proj.'): value
        for key, value in split_qkv(state).items()
    }


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_explora_with_split_projections(dinov2, prefix):
    published = prefixed(projections(dinov2), prefix)
    backbone, rest = from_explora({'teacher': published})
    assert_same(backbone, without(dinov2, 'mask_token'))
    assert_same(rest, {'mask_token': dinov2['mask_token']})


def test_explora_with_both(dinov2):
    published = prefixed(projections(dinov2) | dinov2, 'backbone.') | HEADS
    backbone, rest = from_explora({'teacher': published})
    assert_same(backbone, without(dinov2, 'mask_token'))
    duplicates = {key: value for key, value in published.items() if '_proj.' in key}
    assert_same(rest, duplicates | HEADS | {'mask_token': dinov2['mask_token']})


def test_timm_with_a_classifier():
    options = {key: value for key, value in TINY.items() if key != 'image_size'}
    state = timm.create_model(MODEL, num_classes=3, img_size=28, **options).state_dict()
    backbone, rest = from_timm(state)
    assert rest.keys() == {'head.weight', 'head.bias'}
    assert_same(to_timm(backbone, rest), dict(state))
    with pytest.raises(ValueError, match='timm has no name for mask_token'):
        to_timm(backbone, {'mask_token': torch.ones(1)})


def test_missing_and_unknown_keys_are_all_listed(dinov2):
    backbone, _ = from_dinov2(dinov2)
    backbone |= {'channel_embed': torch.ones(1), 'blocks.1.attn.gate': torch.ones(1)}
    del backbone['norm.bias'], backbone['blocks.3.norm1.weight']
    with pytest.raises(
        ValueError, match=r'missing blocks.3.norm1.weight, norm.bias;'
    ) as e:
        to_dinov2(backbone)
    assert str(e.value).endswith('not part of it blocks.1.attn.gate, channel_embed')


def test_dinov2_has_layer_scale_in_every_block(mae):
    with pytest.raises(ValueError, match=r'DINOv2 checkpoint: missing blocks.0.ls1.g'):
        to_dinov2(from_mae(mae)[0])
