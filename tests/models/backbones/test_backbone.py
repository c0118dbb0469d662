import copy
import pickle

import peft
import pytest
import timm
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import fingerprint
from torchgeo_explora.models import Attention, ViT


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_adapter(backbone):
    config = peft.LoraConfig(r=2, target_modules=['q', 'v'])
    return peft.inject_adapter_in_model(config, backbone)


@pytest.mark.parametrize('options', [{}, {'qk_norm': True}, {'qkv_bias': False}])
@pytest.mark.parametrize('mask', [None, 'bool', 'float', 'causal'])
def test_split_attention_equals_fused_attention(options, mask):
    torch.manual_seed(0)
    fused = timm.layers.Attention(24, 2, norm_layer=torch.nn.LayerNorm, **options)
    x = images(2, 7, 24)
    seen = {
        None: None,
        'bool': images(7, 7) > -1,
        'float': images(7, 7),
        'causal': torch.ones(7, 7, dtype=torch.bool).tril(),
    }[mask]
    given = {'is_causal': True} if mask == 'causal' else {'attn_mask': seen}

    found = Attention(fused)(x, **given)

    assert_close(found, fused(x, attn_mask=seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('adapter', [False, True])
def test_backbone_works_where_autocast_has_no_say(tiny_backbone, adapter):
    """On the meta device, which has no autocast, and in float64, which it leaves."""
    if adapter:
        with_adapter(tiny_backbone)
    image = images(2, 3, 32, 32)
    with torch.autocast('cpu', torch.bfloat16):
        found = copy.deepcopy(tiny_backbone).double()(image.double())
    assert found.cls.dtype == torch.float64
    meta = tiny_backbone.to('meta')(image.to('meta'))
    assert meta.cls.shape == found.cls.shape


def test_attention_takes_a_float_mask_of_any_precision():
    torch.manual_seed(0)
    attention = Attention(timm.layers.Attention(24, 2))
    x, mask = images(2, 7, 24), torch.zeros(7, 7).masked_fill(images(7, 7) < -1, -9.0)
    expected = attention(x, mask)
    assert_close(attention(x, mask.bfloat16()), expected)
    with torch.autocast('cpu', torch.bfloat16):
        found = attention(x, mask.bfloat16())
    assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_attention_dropout_is_applied_in_training_only():
    attention = Attention(timm.layers.Attention(24, 2, attn_drop=0.5))
    x = images(2, 7, 24)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize(
    'options', [{}, {'reg_tokens': 2}, {'qk_norm': True, 'init_values': 0.1}]
)
@pytest.mark.parametrize('adapter', [False, True])
def test_wanted_features_are_those_of_all_tokens(options, adapter):
    torch.manual_seed(0)
    size = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}
    backbone = ViT('vit_tiny_patch16_224', image_size=32, **size, **options)
    if adapter:
        with_adapter(backbone)
    image = images(3, 3, 32, 32)
    wanted = images(3, 16) > 0.5
    wanted[1] = False

    def run(read):
        backbone.zero_grad()
        cls, patch = read()
        (cls.square().sum() + patch.pow(3).sum()).backward()
        gradients = {
            n: p.grad for n, p in backbone.named_parameters() if p.grad is not None
        }
        return cls.detach(), patch.detach(), gradients

    def whole():
        features = backbone(image)
        return features.cls, features.patch[wanted]

    expected = run(whole)
    found = run(lambda: backbone(image, wanted=wanted))
    assert_close(found[:2], expected[:2], rtol=1e-5, atol=1e-5)
    assert_close(found[2], expected[2], rtol=1e-4, atol=1e-4)
    nothing = backbone(image, wanted=torch.zeros_like(wanted))
    assert_close(nothing.cls, expected[0], rtol=1e-5, atol=1e-5)
    assert nothing.patch.shape == (0, 24)


def test_wanted_features_keep_drop_path_to_whole_images():
    size = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}
    torch.manual_seed(0)
    backbone = ViT('vit_tiny_patch16_224', image_size=32, drop_path_rate=0.5, **size)
    image, wanted = images(3, 3, 32, 32), images(3, 16) > 0
    torch.manual_seed(1)
    expected = backbone(image)
    torch.manual_seed(1)
    found = backbone(image, wanted=wanted)
    assert torch.equal(found.cls, expected.cls)
    assert torch.equal(found.patch, expected.patch[wanted])


def test_checkpointing_changes_no_bit_of_the_gradient(tiny_backbone):
    image = images(2, 3, 32, 32)

    def run():
        tiny_backbone.zero_grad()
        torch.manual_seed(0)
        tiny_backbone(image).cls.square().sum().backward()
        return [
            p.grad.clone() for p in tiny_backbone.parameters() if p.grad is not None
        ]

    expected = run()
    tiny_backbone.checkpointing = True
    for found, gradient in zip(run(), expected, strict=True):
        assert torch.equal(found, gradient)


def test_encode_follows_the_order_of_its_tokens(tiny_backbone):
    backbone = tiny_backbone.eval()
    content, position, _ = backbone.embed(images(2, 3, 32, 32))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))

    whole = backbone.encode(content, position)
    shuffled = backbone.encode(content[:, order], position[:, order])

    assert_close(shuffled.cls, whole.cls)
    assert_close(shuffled.patch, whole.patch[:, order])


def test_encode_takes_a_subset_and_even_no_tokens(tiny_backbone):
    content, position, _ = tiny_backbone.embed(images(2, 3, 32, 32))
    for count in (5, 0):
        found = tiny_backbone.encode(content[:, :count], position[:, :count])
        assert found.patch.shape == (2, count, 24)


def test_forward_is_encode_of_content_plus_position(tiny_backbone):
    image = images(2, 3, 32, 32)
    content, position, _ = tiny_backbone.embed(image)
    assert_close(tiny_backbone(image), tiny_backbone.encode(content, position))


def test_features_of_blocks_are_normed_and_in_the_order_asked(tiny_backbone):
    image = images(2, 3, 32, 32)
    last, first, again = tiny_backbone.features(image, [-1, 0, 2])

    assert_close(last, tiny_backbone(image))
    assert_close(again, last)
    content, position, _ = tiny_backbone.embed(image)
    x = torch.cat([tiny_backbone.prefix().expand(2, -1, -1), content + position], 1)
    expected = tiny_backbone.norm(tiny_backbone.blocks[0](x))
    assert_close(first.patch, expected[:, 1:])
    assert tiny_backbone.features(image, []) == []


@pytest.mark.parametrize('index', [3, -4])
def test_features_of_a_block_that_is_not_there_are_refused(tiny_backbone, index):
    with pytest.raises(IndexError, match=r'must be within -3\.\.2'):
        tiny_backbone.features(images(1, 3, 32, 32), [index])


def test_canonical_weights_load_strictly_into_timm(tiny_backbone):
    vit = timm.create_model(
        'vit_tiny_patch16_224',
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=2,
        num_classes=0,
    )
    vit.load_state_dict(tiny_backbone.canonical_state_dict())
    image = images(2, 3, 32, 32)
    tokens = vit.eval().forward_features(image)
    features = tiny_backbone.eval()(image)
    assert_close(features.cls, tokens[:, 0], atol=1e-5, rtol=1e-5)
    assert_close(features.patch, tokens[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('names', ['canonical_state_dict', 'state_dict'])
def test_weights_return_unchanged_by_either_name(tiny_backbone, names):
    other = copy.deepcopy(tiny_backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(getattr(tiny_backbone, names)())
    assert_close(dict(other.state_dict()), dict(tiny_backbone.state_dict()))


def test_names_of_an_adapted_backbone_are_refused(tiny_backbone):
    with_adapter(tiny_backbone)
    with pytest.raises(RuntimeError, match='merged'):
        tiny_backbone.canonical_state_dict()


def test_missing_and_unexpected_keys_are_all_listed(tiny_backbone):
    state = tiny_backbone.canonical_state_dict()
    del state['norm.weight'], state['blocks.1.attn.qkv.bias']
    state |= {'blocks.0.ls1.gamma': torch.ones(24), 'head.bias': torch.ones(2)}
    with pytest.raises(RuntimeError) as error:
        tiny_backbone.load_state_dict(state)
    for key in ('norm.weight', 'blocks.1.attn.q.bias', 'ls1.gamma', 'head.bias'):
        assert key in str(error.value)


def test_fingerprint_is_that_of_the_base_as_given(tiny_backbone):
    base = tiny_backbone.canonical_state_dict()
    half = {key: value.half() for key, value in base.items()}
    assert tiny_backbone.record.fingerprint is None

    tiny_backbone.load_state_dict(half)
    assert tiny_backbone.record.fingerprint == fingerprint(half)

    tiny_backbone.load_state_dict(base)
    recorded = tiny_backbone.record.fingerprint
    assert recorded == fingerprint(base)
    tiny_backbone.load_state_dict(tiny_backbone.state_dict())
    assert tiny_backbone.record.fingerprint == recorded


def test_fingerprint_survives_partial_failed_and_adapted_loads(tiny_backbone):
    base = tiny_backbone.canonical_state_dict()
    tiny_backbone.load_state_dict(base)
    recorded = tiny_backbone.record.fingerprint

    tiny_backbone.load_state_dict({'norm.bias': torch.ones(24)}, strict=False)
    assert tiny_backbone.record.fingerprint == recorded
    assert_close(tiny_backbone.norm.bias.data, torch.ones(24))
    with pytest.raises(RuntimeError):
        tiny_backbone.load_state_dict({**base, 'norm.bias': torch.ones(25)})
    assert tiny_backbone.record.fingerprint == recorded
    with_adapter(tiny_backbone)
    tiny_backbone.load_state_dict(tiny_backbone.state_dict())
    assert tiny_backbone.record.fingerprint == recorded


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_gives_the_same_features(tiny_backbone, copied):
    image = images(1, 3, 32, 32)
    assert_close(copied(tiny_backbone)(image), tiny_backbone(image))


def test_arguments_build_the_same_architecture(tiny_backbone):
    other = ViT(**tiny_backbone.arguments)
    other.load_state_dict(tiny_backbone.state_dict())
    assert other.arguments == tiny_backbone.arguments
    image = images(1, 3, 32, 32)
    assert_close(other(image), tiny_backbone(image))


def test_every_parameter_receives_a_gradient(tiny_backbone):
    features = tiny_backbone(images(2, 3, 32, 32))
    (features.cls.square().sum() + features.patch.square().sum()).backward()
    assert all(p.grad is not None for p in tiny_backbone.parameters())
