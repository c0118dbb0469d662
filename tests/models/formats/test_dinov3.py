"""DINOv3 of FAIR, of timm and of transformers: names both ways, the same features."""

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, load_delta, lora, save_delta
from torchgeo_explora.export import rebuild
from torchgeo_explora.models import GroupChannelViT, RotaryViT, TemporalViT, ViT
from torchgeo_explora.models.checkpoints import (
    from_any,
    from_dinov3,
    from_transformers_dinov3,
    read_state,
    to_dinov3,
    to_transformers_dinov3,
)

SIZES = {'image_size': 32, 'embed_dim': 48, 'depth': 2, 'num_heads': 2, 'patch_size': 8}
PLAIN = 'vit_small_patch16_dinov3'
#: Without biases of q, k and v; with those of q and v; with SwiGLU.
MODELS = (PLAIN, f'{PLAIN}_qkvb', 'vit_small_plus_patch16_dinov3_qkvb')


def filled(model, **options):
    torch.manual_seed(0)
    backbone = RotaryViT(model, **SIZES | options).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def published(backbone):
    """The file that FAIR would release of a backbone."""
    rest = {
        'mask_token': torch.ones(1, 48),
        'rope_embed.periods': backbone.rope.periods.bfloat16(),
        'local_cls_norm.weight': torch.ones(48),
    }
    return to_dinov3(backbone.canonical_state_dict(), rest)


@pytest.mark.parametrize('model', MODELS)
def test_file_of_fair_is_read_and_written(model, tmp_path):
    backbone = filled(model)
    state = published(backbone)
    assert state['storage_tokens'].shape == (1, 4, 48)
    assert state['blocks.0.attn.qkv.bias'].shape == (144,)
    assert ('blocks.1.mlp.w3.weight' in state) is ('plus' in model)
    found, rest = from_dinov3(state)
    assert_close(found, backbone.canonical_state_dict(), rtol=0, atol=0)
    assert rest.keys() == {'mask_token', 'rope_embed.periods', 'local_cls_norm.weight'}
    assert_close(to_dinov3(found, rest), state, rtol=0, atol=0)
    # iBOT starts from the mask token, which timm drops.
    torch.save(
        {'teacher': {f'backbone.{k}': v for k, v in state.items()}}, tmp_path / 'b.pth'
    )
    own = RotaryViT(model, weights=tmp_path / 'b.pth', **SIZES).eval()
    assert torch.equal(own.record.extras['mask_token'], torch.ones(1, 48))
    image = torch.rand(1, 3, 32, 48)
    assert torch.equal(own(image).patch, backbone(image).patch)
    assert own.record.fingerprint == reloaded(backbone).record.fingerprint


def reloaded(backbone):
    own = RotaryViT(**backbone.arguments)
    own.load_state_dict(backbone.canonical_state_dict())
    return own


@pytest.mark.parametrize('model', MODELS)
def test_timm_reads_the_same_from_the_file_of_fair(model):
    """Against timm's own converter of FAIR's files."""
    backbone = filled(model)
    options = {**SIZES, 'img_size': SIZES['image_size']}
    del options['image_size']
    vit = timm.create_model(model, num_classes=0, **options).eval()
    state = published(backbone)
    vit.load_state_dict(timm.models.eva.checkpoint_filter_fn(state, vit))
    image = torch.rand(1, 3, 48, 32)
    expected, found = vit.forward_features(image), backbone(image)
    assert torch.equal(found.cls, expected[:, 0])
    assert torch.equal(found.patch, expected[:, 5:])


def test_biases_that_are_zero_are_the_same_as_none(tmp_path):
    """FAIR's distilled models have them, and timm has models of both kinds."""
    torch.save(published(filled(PLAIN)), tmp_path / 'fair.pth')
    plain = RotaryViT(PLAIN, weights=tmp_path / 'fair.pth', **SIZES).eval()
    biased = RotaryViT(f'{PLAIN}_qkvb', weights=tmp_path / 'fair.pth', **SIZES).eval()
    assert not biased.blocks[1].attn.v.bias.any()
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(plain(image).patch, biased(image).patch)
    # A delta knows the base whichever file it came from.
    torch.save(biased.canonical_state_dict(), tmp_path / 'timm.pth')
    for model, backbone in ((PLAIN, plain), (f'{PLAIN}_qkvb', biased)):
        again = RotaryViT(model, weights=tmp_path / 'timm.pth', **SIZES)
        assert again.record.fingerprint == backbone.record.fingerprint


def test_a_bias_of_keys_is_masked_or_refused():
    state = published(filled(MODELS[1]))
    state['blocks.0.attn.qkv.bias'] = torch.ones(144)
    assert 'blocks.0.attn.k.bias' not in from_dinov3(state)[0]
    del state['blocks.0.attn.qkv.bias_mask']
    with pytest.raises(ValueError, match=r'blocks\.0\.attn.* bias for the keys'):
        from_dinov3(state)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('model', MODELS)
@torch.no_grad()
def test_features_are_those_of_transformers(model, suffix, tmp_path):
    transformers = pytest.importorskip('transformers')
    biases = 'qkvb' in model
    config = transformers.DINOv3ViTConfig(
        patch_size=8,
        hidden_size=48,
        intermediate_size=128 if 'plus' in model else 192,
        num_hidden_layers=2,
        num_attention_heads=2,
        query_bias=biases,
        value_bias=biases,
        use_gated_mlp='plus' in model,
        hidden_act='silu' if 'plus' in model else 'gelu',
        num_register_tokens=4,
    )
    torch.manual_seed(0)
    theirs = transformers.DINOv3ViTModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if suffix == '.pth':  # names in memory
        path = tmp_path / 'model.pth'
        torch.save(theirs.state_dict(), path)
        state = theirs.state_dict()
    else:
        theirs.save_pretrained(tmp_path)
        path = tmp_path / 'model.safetensors'
        state = load_file(path)
        assert 'layer.0.attention.q_proj.weight' in state
    hidden = {'mlp_ratio': config.intermediate_size / 48}
    own = RotaryViT(model, weights=path, **SIZES | hidden).eval()
    assert own.record.extras['mask_token'].any()
    for size in ((32, 32), (48, 80)):
        image = torch.rand(2, 3, *size)
        expected, found = theirs(image).last_hidden_state, own(image)
        assert_close(found.cls, expected[:, 0], rtol=0, atol=1e-5)
        assert_close(found.patch, expected[:, 5:], rtol=0, atol=1e-5)
        # In any order of the patches.
        content, position, _ = own.embed(image)
        order = torch.randperm(content.shape[1])
        found = own.encode(content[:, order], position[:, order])
        assert_close(found.patch, expected[:, 5:][:, order], rtol=0, atol=1e-5)
    backbone, rest = from_transformers_dinov3(state)
    again = to_transformers_dinov3(backbone, rest)
    if suffix == '.safetensors':
        assert_close(again, state, rtol=0, atol=0)
    assert_close(from_any(again)[0], backbone, rtol=0, atol=0)


def test_other_weights_are_refused_with_the_reason(tmp_path):
    def refused(state, message, **options):
        torch.save(state, tmp_path / 'other.pth')
        with pytest.raises(ValueError, match=message):
            RotaryViT(PLAIN, weights=tmp_path / 'other.pth', **SIZES | options)

    state = published(filled(PLAIN))
    fewer = state | {'storage_tokens': state['storage_tokens'][:, :2]}
    refused(fewer, r'2 register \(storage\) tokens, expected 4: choose the \*model\*')
    refused(state, r'patches of 8 pixels, expected 16.*patch_size=8', patch_size=16)
    refused(state, r'rotate by other periods.*\*num_heads\*', num_heads=4)
    refused(state, r'other periods.*\*rope_temperature\*', rope_temperature=50.0)
    refused(published(filled(MODELS[1])), r'biases of queries and values.*_qkvb')
    learned = ViT('vit_tiny_patch16_224', **SIZES).canonical_state_dict()
    refused(learned, r'a table of positions \(pos_embed\).*choose the \*model\*')
    with pytest.raises(ValueError, match=r'\(36, 36\) is not a multiple of patch_size'):
        RotaryViT(PLAIN, **SIZES | {'image_size': 36})


@pytest.mark.parametrize('kind', ['fair', 'timm', 'transformers'])
def test_backbones_with_a_table_of_positions_refuse_them_in_a_sentence(kind, tmp_path):
    backbone = filled(PLAIN)
    state = backbone.canonical_state_dict()
    if kind != 'timm':
        state = published(backbone) if kind == 'fair' else to_transformers_dinov3(state)
    torch.save(state, tmp_path / 'rotary.pth')
    for build in (
        lambda **given: ViT('vit_tiny_patch16_224', **given),
        lambda **given: GroupChannelViT(channel_embed_dim=12, **given),
        lambda **given: TemporalViT(time_embed_dim=12, **given),
    ):
        with pytest.raises(ValueError, match=r'rotary\.pth are of a .*RotaryViT'):
            build(weights=tmp_path / 'rotary.pth', **SIZES)


def test_other_storage_tokens_are_an_argument_that_a_delta_keeps(tmp_path):
    state = published(filled(PLAIN))
    state['storage_tokens'] = state['storage_tokens'][:, :2]
    torch.save(state, tmp_path / 'two.pth')
    with pytest.raises(ValueError, match='or give num_reg_tokens=2'):
        RotaryViT(PLAIN, weights=tmp_path / 'two.pth', **SIZES)
    own = RotaryViT(PLAIN, weights=tmp_path / 'two.pth', num_reg_tokens=2, **SIZES)
    save_delta(adapt(own, Adaptation((), adapter=lora(2))), tmp_path / 'd.safetensors')
    again = rebuild(tmp_path / 'd.safetensors', tmp_path / 'two.pth').eval()
    image = torch.rand(1, 3, 32, 48)
    assert torch.equal(again(image).cls, own.eval()(image).cls)


def test_a_delta_of_other_rotary_settings_is_refused(tmp_path):
    torch.save(filled(PLAIN).canonical_state_dict(), tmp_path / 'base.pth')
    options = {**SIZES, 'weights': tmp_path / 'base.pth'}
    slow = RotaryViT(PLAIN, rope_temperature=50.0, **options)
    save_delta(adapt(slow, Adaptation((), adapter=lora(2))), tmp_path / 'd.safetensors')
    with pytest.raises(
        ValueError, match=r'rotary settings .*50.*settings of the delta'
    ):
        load_delta(RotaryViT(PLAIN, **options), tmp_path / 'd.safetensors')
    again = rebuild(tmp_path / 'd.safetensors', tmp_path / 'base.pth')
    assert again.rope.temperature == 50
    # How coordinates vary in training is no such setting.
    load_delta(
        RotaryViT(PLAIN, rope_temperature=50.0, rope_rescale_coords=2.0, **options),
        tmp_path / 'd.safetensors',
    )


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('rope_shift_coords', 0.5),
        ('rope_jitter_coords', 2.0),
        ('rope_rescale_coords', 2.0),
    ],
)
def test_coordinates_vary_within_their_ranges_and_in_training_only(option, value):
    own = RotaryViT(PLAIN, **SIZES, **{option: value})
    assert own.arguments[option] == value
    plain = RotaryViT(PLAIN, **SIZES)
    image = torch.rand(1, 3, 32, 32)
    # The lowest frequency turns by less than half a turn: its angle is a coordinate.
    quarter = own.rope.periods.shape[0]

    def coordinates(backbone):
        sine, cosine = backbone.embed(image).position[0].chunk(2, dim=-1)
        angle = torch.atan2(sine, cosine) * own.rope.periods[-1] / (2 * torch.pi)
        return torch.stack([angle[:, quarter - 1], angle[:, 2 * quarter - 1]])

    still = coordinates(plain)
    drawn = torch.stack([coordinates(own) for _ in range(50)])  # (50, 2, N)
    if option == 'rope_shift_coords':
        moved = drawn - still
        assert_close(moved, moved[..., :1].expand_as(moved), rtol=0, atol=1e-4)
        assert moved.abs().max() <= 0.5
        assert moved.abs().max() > 0.3
    else:
        factors = drawn / still
        assert_close(factors, factors[..., :1].expand_as(factors), rtol=1e-3, atol=1e-4)
        assert factors.min() >= 0.499
        assert factors.max() <= 2.001
        apart = (factors[:, 0, 0] - factors[:, 1, 0]).abs().max().item()
        assert apart > 0.1 if option == 'rope_jitter_coords' else apart < 1e-3
    assert torch.equal(own.eval().embed(image).position, plain.embed(image).position)


def test_ranges_that_make_no_sense_are_refused():
    for option, value in (
        ('rope_shift_coords', -1),
        ('rope_jitter_coords', 0.5),
        ('rope_rescale_coords', 0),
    ):
        name = option.removeprefix('rope_')
        with pytest.raises(ValueError, match=name):
            RotaryViT(PLAIN, **SIZES, **{option: value})


def test_statistics_are_those_of_the_weights(tmp_path):
    """SAT-493M was trained on images of another mean than the web's."""
    sat = timm.get_pretrained_cfg('vit_large_patch16_dinov3.sat493m')
    assert sat.mean == (0.430, 0.411, 0.296)
    path = tmp_path / 'dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth'
    torch.save(published(filled(PLAIN)), path)
    own = RotaryViT(PLAIN, weights=path, **SIZES)
    assert (own.mean, own.std) == (sat.mean, sat.std)
    named = RotaryViT('vit_large_patch16_dinov3.sat493m', **SIZES)
    assert (named.mean, named.std) == (sat.mean, sat.std)
    path = path.rename(tmp_path / 'dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth')
    assert RotaryViT(PLAIN, weights=path, **SIZES).mean == (0.485, 0.456, 0.406)
    # Files of the Hub are all called the same; the nearest name decides.
    folder = tmp_path / 'sat493m' / 'dinov3-vitl16-pretrain-sat493m'
    folder.mkdir(parents=True)
    same = folder / 'model.pth'
    torch.save(torch.load(path), same)
    assert RotaryViT(PLAIN, weights=same, **SIZES).mean == sat.mean
    path = path.rename(folder / path.name)
    assert RotaryViT(PLAIN, weights=path, **SIZES).mean == (0.485, 0.456, 0.406)


def test_the_rest_of_a_file_is_asked_for():
    with pytest.raises(ValueError, match=r'mask_token and rope_embed\.periods'):
        to_dinov3(filled(PLAIN).canonical_state_dict())
    with pytest.raises(ValueError, match=r'has no head\.weight: use export_timm'):
        to_transformers_dinov3(
            filled(PLAIN).canonical_state_dict(), {'head.weight': torch.ones(1)}
        )
    with pytest.raises(ValueError, match='no DINOv3ViTModel was found'):
        from_transformers_dinov3({'a': torch.ones(1)})


def test_all_kinds_are_told_apart(tmp_path):
    for name in (PLAIN, MODELS[2]):
        state = published(filled(name))
        torch.save(
            {'model': {f'module.{k}': v for k, v in state.items()}}, tmp_path / 'f.pth'
        )
        assert 'blocks.0.gamma_1' in read_state(tmp_path / 'f.pth', name)[0]
