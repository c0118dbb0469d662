import copy

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    load_delta,
    lora,
    merged,
    save_delta,
    twin,
)
from torchgeo_explora.functional import resize_grid, sincos_2d
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT

TINY = {'embed_dim': 48, 'depth': 2, 'num_heads': 2}
DATES = torch.tensor([[[13, 6, 7], [0, 0, 0]], [[8, 9, 0], [1, 8, 11]]])
KINDS = ['group', 'temporal']
LEFT = {
    'group': ('patch_embed', 'pos_embed', 'channel_embed'),
    'temporal': ('pos_embed',),
}


def backbone(kind, seed=0, **options):
    torch.manual_seed(seed)
    settings = {'image_size': 32, 'patch_size': 8, **TINY, **options}
    if kind == 'group':
        return GroupChannelViT(
            bands=['B02', 'B03', 'B11'],
            groups=[['B02', 'B03'], ['B11']],
            channel_embed_dim=16,
            **settings,
        )
    return TemporalViT(time_embed_dim=24, **settings)


def plain(**options):
    torch.manual_seed(1)
    vit = ViT(
        'vit_tiny_patch16_224', **TINY | {'image_size': 32, 'patch_size': 8, **options}
    )
    with torch.no_grad():
        # As a trained table has it.
        vit.pos_embed[:, 0].normal_()
    return vit.eval()


def sample(kind, size=32):
    generator = torch.Generator().manual_seed(0)
    if kind == 'group':
        return {'image': torch.rand(2, 3, size, size, generator=generator)}
    image = torch.rand(2, 2, 3, size, size, generator=generator)
    return {'image': image, 'timestamps': DATES}


@pytest.mark.parametrize('kind', KINDS)
def test_the_transformer_of_a_plain_vit_is_taken_whole(kind):
    vit, own = plain(), backbone(kind).eval()
    before = copy.deepcopy(own.state_dict())
    left = own.load_transformer(vit.canonical_state_dict())

    assert left == own.record.untrained == LEFT[kind]
    tokens = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    position = torch.zeros(1, 5, 48)
    assert_close(own.encode(tokens, position), vit.encode(tokens, position))
    for key, value in own.state_dict().items():
        if key.partition('.')[0] in left:
            assert torch.equal(value, before[key])


@pytest.mark.parametrize('kind', KINDS)
def test_the_fingerprint_is_that_of_the_plain_base(kind):
    vit, own = plain(), backbone(kind)
    state = {key: value.half() for key, value in vit.canonical_state_dict().items()}
    vit.load_state_dict(state)
    own.load_transformer(state)
    assert own.record.fingerprint == vit.record.fingerprint
    assert own.cls_token.dtype == torch.float32


def test_a_patch_embedding_is_taken_where_it_fits():
    vit = plain()
    own = backbone('temporal')
    own.load_transformer(vit.canonical_state_dict())
    assert torch.equal(own.patch_embed.proj.weight, vit.patch_embed.proj.weight)

    other = backbone('temporal', image_size=48, patch_size=16)
    assert other.load_transformer(vit.canonical_state_dict()) == (
        'patch_embed',
        'pos_embed',
    )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'embed_dim': 24}, 'size mismatch for blocks.0'),
        ({'depth': 3}, r'Unexpected key\(s\).*blocks\.2'),
        ({'depth': 1}, r'Missing key\(s\).*blocks\.1'),
        ({'init_values': 0.1}, r'Unexpected key\(s\).*ls1\.gamma'),
        ({'reg_tokens': 2}, r'Unexpected key\(s\).*reg_token'),
    ],
)
def test_a_plain_vit_of_another_make_is_refused(kind, options, message):
    own, vit = backbone(kind), plain(**options)
    with pytest.raises(RuntimeError, match=f'(?s){message}'):
        own.load_transformer(vit.canonical_state_dict())
    assert own.record.untrained == own.own
    assert own.record.fingerprint is None


def test_a_plain_vit_without_a_class_token_is_refused():
    state = plain().canonical_state_dict()
    del state['cls_token']
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*cls_token'):
        backbone('group').load_transformer(state)


@pytest.mark.parametrize('kind', KINDS)
def test_weights_of_a_file_are_those_of_a_plain_vit_or_of_its_own_kind(kind, tmp_path):
    rest = {'mask_token': torch.ones(1, 1, 8), 'decoder_norm.bias': torch.ones(8)}
    save_file(plain().canonical_state_dict() | rest, tmp_path / 'plain.safetensors')
    own = backbone(kind, weights=tmp_path / 'plain.safetensors')
    assert own.record.untrained == LEFT[kind]
    assert_close(own.record.extras, rest)

    state = {key: v.contiguous() for key, v in own.canonical_state_dict().items()}
    save_file(state | rest, tmp_path / 'own.safetensors')
    again = backbone(kind, seed=3, weights=tmp_path / 'own.safetensors')
    assert again.record.untrained == ()
    assert_close(dict(again.state_dict()), dict(own.state_dict()))
    assert_close(again.record.extras, rest)


def test_the_code_of_a_classifiers_class_token_is_folded_into_it(tmp_path):
    own = backbone('group')
    code = torch.arange(16.0).view(1, 1, 16)
    state = own.canonical_state_dict() | {'channel_cls_embed': code}
    save_file(state, tmp_path / 'classifier.safetensors')
    again = backbone('group', seed=3, weights=tmp_path / 'classifier.safetensors')
    assert_close(again.cls_token[..., :32], own.cls_token[..., :32])
    assert_close(again.cls_token[..., 32:], own.cls_token[..., 32:] + code)


@pytest.mark.parametrize('kind', KINDS)
def test_a_position_table_of_another_size_is_resized_once(kind):
    large, small = backbone(kind, image_size=48), backbone(kind)
    with torch.no_grad():
        large.pos_embed.copy_(torch.randn(large.pos_embed.shape))
    small.load_state_dict(large.state_dict())
    table = large.pos_embed
    assert_close(small.pos_embed[:, :1], table[:, :1])
    assert_close(small.pos_embed[:, 1:], resize_grid(table[:, 1:], (4, 4)))


@pytest.mark.parametrize('kind', KINDS)
def test_the_positions_of_images_that_are_not_square_start_at_sin_cos(kind):
    own = backbone(kind, image_size=(32, 16))
    assert own.grid == (4, 2)
    table = own.pos_embed[0, 1:]
    assert torch.equal(table, sincos_2d((4, 2), table.shape[-1]))
    image = {**sample(kind), 'image': sample(kind)['image'][..., :16]}
    assert own(**image).patch.shape[1] == 2 * 8


@pytest.mark.parametrize('kind', KINDS)
def test_what_a_partial_load_leaves_out_still_has_to_train(kind):
    own, whole = backbone(kind), backbone(kind, seed=1).state_dict()
    own.load_state_dict({k: v for k, v in whole.items() if 'pos' in k}, strict=False)
    assert own.record.untrained == own.own
    own.load_state_dict(whole)
    assert own.record.untrained == ()


@pytest.mark.parametrize('kind', KINDS)
def test_images_of_another_size_have_dinov2s_positions(kind):
    own = backbone(kind)
    expected = resize_grid(own.pos_embed[:, 1:], (6, 6), offset=0.1)
    position = own.embed(**sample(kind, 48)).position
    width = expected.shape[-1]
    for tokens in position[:, :, :width].unflatten(1, (2, 36)).unbind(1):
        assert_close(tokens, expected.expand_as(tokens))


@pytest.mark.parametrize('kind', KINDS)
def test_a_twin_shares_what_is_frozen_and_agrees(kind):
    own = backbone(kind).eval()
    before = own(**sample(kind))
    adapt(own, Adaptation(adapter=lora(4), modules=own.own))
    teacher = twin(own)
    assert_close(own(**sample(kind)), before)
    assert torch.equal(teacher(**sample(kind)).cls, own(**sample(kind)).cls)
    frozen = {id(p) for p in own.parameters() if not p.requires_grad}
    assert frozen == {id(p) for p in teacher.parameters()} & frozen
    assert all(own.get_parameter(n).requires_grad for n in ('pos_embed', 'cls_token'))


@pytest.mark.parametrize('kind', KINDS)
def test_a_delta_goes_onto_the_same_transformer_under_another_start(kind, tmp_path):
    state = plain().canonical_state_dict()
    own, fresh = backbone(kind), backbone(kind, seed=5)
    for each in (own, fresh):
        each.load_transformer(state)
    adapt(own, Adaptation(adapter=lora(4), modules=own.record.untrained)).eval()
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    save_delta(own, tmp_path / 'delta.safetensors')

    # The patch embedding that fresh drew by chance is in the delta, and replaced.
    load_delta(fresh, tmp_path / 'delta.safetensors').eval()
    assert_close(fresh(**sample(kind)), own(**sample(kind)))
    whole = merged(own).eval()
    assert whole.state_dict().keys() == backbone(kind).state_dict().keys()
    close = {'atol': 1e-5, 'rtol': 1e-5}
    assert_close(whole(**sample(kind)), own(**sample(kind)), **close)
    assert_close(dict(merged(whole).state_dict()), dict(whole.state_dict()))


@pytest.mark.parametrize('kind', KINDS)
def test_a_delta_of_another_base_is_refused(kind, tmp_path):
    own, other = backbone(kind), backbone(kind)
    own.load_transformer(plain().canonical_state_dict())
    adapt(own, Adaptation(adapter=lora(4), modules=own.record.untrained))
    save_delta(own, tmp_path / 'delta.safetensors')
    with pytest.raises(ValueError, match='load the same weights'):
        load_delta(other, tmp_path / 'delta.safetensors')


def test_a_random_embedding_under_a_loaded_base_has_to_train():
    own = backbone('group')
    adapt(copy.deepcopy(own), Adaptation(()))
    own.load_transformer(plain().canonical_state_dict())
    with pytest.raises(ValueError, match=r"patch_embed was drawn .* add 'patch_embed'"):
        adapt(own, Adaptation(()))
    # Codes may stay at their sin-cos tables, which every constructor gives.
    adapt(own, Adaptation((), modules=['patch_embed']))
