import json

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    count,
    load_delta,
    lora,
    save_delta,
)
from torchgeo_explora.functional import sincos_1d, sincos_2d
from torchgeo_explora.models import GroupChannelViT
from torchgeo_explora.models.backbones.group_channel import SATMAE_BANDS, SATMAE_GROUPS
from torchgeo_explora.models.checkpoints import from_satmae_group

# Ten times what the reference differs by from its own computation in float64.
CLOSE = {'atol': 1e-5, 'rtol': 1e-4}
TINY = {'embed_dim': 48, 'depth': 2, 'num_heads': 4, 'mlp_ratio': 2.0}


def backbone(**options):
    torch.manual_seed(0)
    settings = {'image_size': 48, 'patch_size': 8, 'channel_embed_dim': 16, **TINY}
    return GroupChannelViT(**settings | options)


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def part(tensors, prefix):
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


@pytest.fixture(scope='module')
def satmae(golden):
    tensors, _ = golden('satmae_group_vit')
    return tensors | golden('satmae_group_vit_blocks')[0]


def test_class_token_and_gradients_equal_those_of_satmae(satmae):
    state, rest = from_satmae_group(part(satmae, 'sd.pool0.'))
    vit = backbone()
    vit.load_state_dict(state)

    features = vit(satmae['in.imgs'])
    assert_close(features.cls, satmae['out.pool0.features'], **CLOSE)

    logits = features.cls @ rest['head.weight'].T + rest['head.bias']
    assert_close(logits, satmae['out.pool0.logits'], **CLOSE)
    (logits * satmae['in.cotangent']).sum().backward()
    grads = {key: p.grad for key, p in vit.named_parameters()}
    for key in ('pos_embed', 'channel_embed', 'patch_embed.1.proj.bias'):
        assert_close(grads[key], satmae[f'grad.pool0.{key}'], **CLOSE)
    # The class token's code is folded into the token.
    code = grads['cls_token'][..., -16:]
    assert_close(code, satmae['grad.pool0.channel_cls_embed'], **CLOSE)
    norms = part(satmae, 'out.pool0.gradnorm.')
    for key in norms.keys() & grads.keys():
        assert_close(grads[key].norm(), norms[key], **CLOSE)
    for i in range(2):
        name = f'blocks.{i}.attn'
        for kind in ('weight', 'bias'):
            qkv = torch.cat([grads[f'{name}.{x}.{kind}'] for x in 'qkv'])
            assert_close(qkv.norm(), norms[f'{name}.qkv.{kind}'], **CLOSE)


def test_pixels_are_not_normalised_further():
    own = backbone()
    assert own.mean == (0.0,) * len(SATMAE_BANDS)
    assert own.std == (1.0,) * len(SATMAE_BANDS)


def test_codes_start_at_sin_cos_tables():
    vit = backbone()
    assert not vit.pos_embed[:, 0].any()
    assert torch.equal(vit.pos_embed[0, 1:], sincos_2d((6, 6), 32))
    assert torch.equal(vit.channel_embed[0], sincos_1d(torch.arange(3), 16))
    assert torch.equal(vit.prefix(), vit.cls_token)


def test_a_token_has_the_position_of_its_patch_then_the_code_of_its_group():
    vit = backbone()
    _, position, grid = vit.embed(images(2, 10, 48, 48))
    assert grid == (3, 6, 6)
    assert position.shape == (1, 108, 48)
    for group in range(3):
        for patch in (0, 17, 35):
            expected = torch.cat(
                [vit.pos_embed[0, 1 + patch], vit.channel_embed[0, group]]
            )
            assert torch.equal(position[0, 36 * group + patch], expected)


@pytest.mark.parametrize(
    ('band', 'group'), [('B02', 0), ('B08', 0), ('B05', 1), ('B8A', 1), ('B12', 2)]
)
def test_a_band_changes_the_tokens_of_its_group_alone(band, group):
    vit = backbone()
    image = images(1, 10, 48, 48)
    other = image.clone()
    other[:, SATMAE_BANDS.index(band), :8, 8:16] += 1
    changed = (vit.embed(image).content != vit.embed(other).content).any(-1)
    assert changed.nonzero().tolist() == [[0, 36 * group + 1]]


def test_patchify_follows_the_order_of_embed():
    vit = backbone(image_size=(16, 24))
    image = images(2, 10, 16, 24)
    pixels = vit.patchify(image)
    assert pixels.shape == (2, 18, 4 * 64)
    assert not pixels[:, :12].isnan().any()
    assert pixels[:, 12:, 128:].isnan().all()
    for group, layer in enumerate(vit.patch_embed):
        kernel = layer.proj.weight.flatten(1)
        rows = pixels[:, 6 * group : 6 * group + 6, : kernel.shape[1]]
        content = vit.embed(image).content[:, 6 * group : 6 * group + 6]
        assert_close(rows @ kernel.T + layer.proj.bias, content)


def test_order_of_bands_is_that_of_the_image():
    # The same weights read the same image whatever the order of its channels.
    reverse = SATMAE_BANDS[::-1]
    one, other = backbone(), backbone(bands=reverse)
    image = images(1, 10, 48, 48)
    assert_close(one(image), other(image.flip(1)))


def test_other_groups_and_sizes_are_a_matter_of_arguments():
    vit = backbone(
        bands=['red', 'nir', 'thermal'],
        groups=[['thermal'], ['nir', 'red']],
        image_size=(16, 32),
    )
    assert vit.group_indices == ((2,), (1, 0))
    features = vit(images(2, 3, 16, 32))
    assert features.patch.shape == (2, 2 * 2 * 4, 48)
    assert vit(images(2, 3, 32, 48)).patch.shape == (2, 2 * 4 * 6, 48)


@pytest.mark.parametrize(
    ('bands', 'groups', 'message'),
    [
        (['a', 'b'], [['a'], ['b', 'c']], r'\*groups\* names c, not among .* a, b'),
        (['a', 'b'], [['a'], ['b', 'a']], r'\*groups\* names a band twice: a;'),
        (['a', 'b', 'a'], [['a'], ['b']], r'\*bands\* names a band twice: a'),
        (['a', 'b', 'c'], [['a'], ['b']], r'\*bands\* has c, in none of the \*groups'),
        (['a'], [['a'], []], 'a group without bands'),
        ([], [], 'a group without bands'),
    ],
)
def test_groups_that_are_no_partition_are_refused(bands, groups, message):
    with pytest.raises(ValueError, match=message):
        backbone(bands=bands, groups=groups)


@pytest.mark.parametrize('call', ['__call__', 'patchify'])
def test_an_image_with_other_channels_is_refused(call):
    vit = backbone()
    with pytest.raises(ValueError, match=r'\(1, 13, 48, 48\).* C = 10 bands B02, B03'):
        getattr(vit, call)(images(1, 13, 48, 48))
    with pytest.raises(ValueError, match=r'\(50, 48\) is not a multiple.*\(48, 48\)'):
        getattr(vit, call)(images(1, 10, 50, 48))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'channel_embed_dim': 48}, r'\*channel_embed_dim\* 48 leaves 0 of embed_dim'),
        ({'channel_embed_dim': 10}, 'leaves 38 .* multiple of 4: choose 12'),
        ({'channel_embed_dim': 7}, 'leaves 41'),
        ({'num_heads': 5}, r'\*embed_dim\* 48 is not a multiple of \*num_heads\* 5'),
        ({'image_size': 50}, r'image size \(50, 50\) is not a multiple'),
    ],
)
def test_widths_and_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**options)


def test_arguments_build_the_same_architecture_even_from_json():
    vit = backbone()
    other = GroupChannelViT(**json.loads(json.dumps(vit.arguments)))
    assert other.arguments == vit.arguments
    other.load_state_dict(vit.state_dict())
    image = images(1, 10, 48, 48)
    assert_close(other(image), vit(image))


def test_every_parameter_receives_a_gradient():
    vit = backbone()
    features = vit(images(2, 10, 48, 48))
    (features.cls.square().sum() + features.patch.square().sum()).backward()
    assert all(p.grad is not None for p in vit.parameters())
    assert vit.pos_embed.grad[:, 0].any()


def test_parameters_are_as_many_as_published():
    with torch.device('meta'):
        vit = GroupChannelViT()
    sizes = {name: p.numel() for name, p in vit.named_parameters()}
    assert sum(sizes.values()) == 303_083_008
    assert sum(n for key, n in sizes.items() if 'patch_embed' in key) == 658_432
    assert (sizes['pos_embed'], sizes['channel_embed']) == (111_360, 768)


@pytest.mark.parametrize(
    ('unfreeze', 'rank', 'delta', 'percent'),
    [
        ([23], 32, 16_477_696, 5.44),
        ([23], 64, 19_492_352, 6.43),
        ([0, 23], 32, 28_938_752, 9.55),
        ([0, 23], 64, 31_822_336, 10.50),
    ],
)
def test_delta_is_as_large_as_published(unfreeze, rank, delta, percent):
    with torch.device('meta'):
        vit = GroupChannelViT()
    trains = Adaptation(unfreeze, cls_token=False, adapter=lora(rank), modules=vit.own)
    trained, base = count(adapt(vit, trains))
    assert trained == delta
    assert round(100 * trained / base, 2) == percent


def test_delta_of_other_groups_is_refused(tmp_path):
    """Their weights have the same shapes, and would be put on other bands."""
    groups = [list(group) for group in SATMAE_GROUPS]
    own = backbone()
    state = own.state_dict()
    own.load_state_dict(state)
    adapt(own, Adaptation(modules=('patch_embed', 'pos_embed', 'channel_embed')))
    save_delta(own, tmp_path / 'delta.safetensors')
    other = backbone(groups=[groups[1], groups[0], groups[2]])
    other.load_state_dict(state)
    with pytest.raises(ValueError, match='groups of bands'):
        load_delta(other, tmp_path / 'delta.safetensors')
