import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from torchgeo_explora.functional import patchify, replace_tokens, resize_grid
from torchgeo_explora.models import ViT
from torchgeo_explora.models.checkpoints import from_dinov2

# Ten times what the references differ by from their own computation in float64.
CLOSE = {'atol': 3e-5, 'rtol': 1e-4}
TINY = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def part(tensors, prefix):
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


@pytest.fixture(scope='module')
def dinov2(golden):
    """Weights of a DINOv2 without its position table, inputs and outputs."""
    tensors, config = golden('dinov2_vit')
    for name in ('dinov2_vit_blocks', 'dinov2_vit_position'):
        more, _ = golden(name)
        more.pop('sd.pos_embed', None)
        tensors |= {k: v for k, v in more.items() if k not in tensors}
    return tensors, config


def test_features_equal_those_of_dinov2(dinov2):
    tensors, config = dinov2
    options = {key: config['model'][key] for key in ('embed_dim', 'depth', 'num_heads')}
    vit = ViT('vit_small_patch14_dinov2', image_size=98, **options).eval()
    state, rest = from_dinov2(part(tensors, 'sd.'))
    vit.load_state_dict({**state, 'pos_embed': tensors['out.l98.pos_embed_used']})
    image, mask = tensors['in.l98.img'], tensors['in.l98.masks']

    with torch.no_grad():
        features = vit(image)
        content, position, grid = vit.embed(image)
        content = replace_tokens(content, mask, rest['mask_token'])
        masked = vit.encode(content, position)
        middle, last = vit.features(image, [-2, -1])

    expected = part(tensors, 'out.l98.')
    assert grid == (1, 7, 7)
    assert_close(features.cls, expected['x_norm_clstoken'], **CLOSE)
    assert_close(features.patch, expected['x_norm_patchtokens'], **CLOSE)
    assert_close(masked.cls, expected['masked.x_norm_clstoken'], **CLOSE)
    assert_close(masked.patch, expected['masked.x_norm_patchtokens'], **CLOSE)
    assert_close(middle.cls, expected['inter_last2.0.cls'], **CLOSE)
    assert_close(middle.patch, expected['inter_last2.0.patch'], **CLOSE)
    assert_close(last.patch, expected['x_norm_patchtokens'], **CLOSE)


def test_positions_of_other_sizes_follow_dinov2(golden):
    tensors, config = golden('dinov2_vit_position')
    table = tensors['sd.pos_embed']
    vit = ViT(
        'vit_small_patch14_dinov2',
        image_size=config['model']['img_size'],
        embed_dim=table.shape[-1],
        depth=0,
        num_heads=1,
    )
    vit.load_state_dict({**vit.canonical_state_dict(), 'pos_embed': table})
    assert vit.grid == (37, 37)
    for name, (_, height, width) in config['inputs'].items():
        expected = tensors[f'out.{name}.pos_embed_used']
        position = vit.embed(torch.zeros(1, 3, height, width)).position
        assert_close(position, expected[:, 1:])
        assert_close(vit.prefix() - vit.cls_token, expected[:, :1])


@pytest.mark.parametrize(
    'model', ['vit_small_patch14_reg4_dinov2', 'vit_small_patch14_dinov2']
)
def test_registers_equal_those_of_dinov2(golden, model):
    tensors, config = golden('dinov2_vit_registers')
    vit = ViT(model, image_size=84, reg_tokens=2, **TINY).eval()
    vit.load_state_dict(from_dinov2(part(tensors, 'sd.'))[0])

    assert vit.prefix().shape == (1, 3, 24)
    for name in ('native84', 'same36_rect'):
        with torch.no_grad():
            features = vit(tensors[f'in.{name}.img'])
        expected = part(tensors, f'out.{name}.')
        assert_close(features.cls, expected['x_norm_clstoken'], **CLOSE)
        assert_close(features.patch, expected['x_norm_patchtokens'], **CLOSE)
    for name in ('up126', 'rect42x168'):
        _, height, width = config['inputs'][name]
        position = vit.embed(torch.zeros(1, 3, height, width)).position
        assert_close(position, tensors[f'out.{name}.pos_embed_used'][:, 1:])


@pytest.mark.parametrize(
    ('model', 'options'),
    [
        ('vit_tiny_patch16_224', {}),
        ('vit_small_patch14_dinov2', {}),
        ('vit_giant_patch14_dinov2', {}),
        ('vit_small_patch14_reg4_dinov2', {}),
        ('vit_base_patch16_clip_224', {}),
        ('vit_tiny_patch16_224', {'qk_norm': True, 'init_values': 0.1}),
        ('vit_tiny_patch16_224', {'scale_attn_norm': True, 'reg_tokens': 3}),
    ],
)
def test_tokens_equal_those_of_timm(model, options):
    torch.manual_seed(0)
    settings = {**TINY, **options}
    timm_vit = timm.create_model(
        model, img_size=56, num_classes=0, patch_size=14, **settings
    ).eval()
    with torch.no_grad():
        for parameter in timm_vit.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    vit = ViT(model, image_size=56, patch_size=14, **settings).eval()
    vit.load_state_dict(timm_vit.state_dict())
    image = images(2, 3, 56, 56)

    with torch.no_grad():
        expected = timm_vit.forward_features(image)
        features = vit(image)

    assert_close(features.cls, expected[:, 0], atol=1e-5, rtol=1e-5)
    patches = expected[:, timm_vit.num_prefix_tokens :]
    assert_close(features.patch, patches, atol=1e-5, rtol=1e-5)
    assert vit.canonical_state_dict().keys() == timm_vit.state_dict().keys()


def test_a_seed_gives_the_weights_of_timm():
    torch.manual_seed(0)
    expected = timm.create_model('vit_tiny_patch16_224', num_classes=0, **TINY)
    torch.manual_seed(0)
    found = ViT('vit_tiny_patch16_224', **TINY).canonical_state_dict()
    assert_close(found, dict(expected.state_dict()))


def test_table_of_another_grid_is_resized_once_without_antialias():
    big = ViT('vit_tiny_patch16_224', **TINY)
    small = ViT('vit_tiny_patch16_224', image_size=(112, 64), **TINY)
    small.load_state_dict({k: v.half() for k, v in big.state_dict().items()})

    assert small.grid == (7, 4)
    stored = big.pos_embed.half().float()
    assert_close(small.pos_embed[:, :1], stored[:, :1])
    assert_close(small.pos_embed[:, 1:], resize_grid(stored[:, 1:], (7, 4)))
    assert small.pos_embed.dtype == torch.float32
    _, position, grid = small.embed(torch.zeros(1, 3, 112, 64))
    assert grid == (1, 7, 4)
    assert torch.equal(position, small.pos_embed[:, 1:])


def test_a_table_that_is_not_square_serves_other_sizes_too():
    vit = ViT('vit_tiny_patch16_224', image_size=[64, 144], **TINY)  # 36 = 4 x 9 tokens
    position = vit.embed(torch.zeros(1, 3, 96, 96)).position
    table = vit.pos_embed[:, 1:]
    assert_close(position, resize_grid(table, (6, 6), offset=0.1, source=(4, 9)))


def test_a_table_that_is_no_grid_is_refused():
    vit = ViT('vit_tiny_patch16_224', **TINY)
    state = vit.canonical_state_dict() | {'pos_embed': torch.zeros(1, 30, 24)}
    with pytest.raises(RuntimeError, match='pos_embed has 30 rows'):
        vit.load_state_dict(state)


def test_patchify_follows_the_order_of_embed():
    vit = ViT('vit_tiny_patch16_224', image_size=(32, 48), **TINY)
    image = images(2, 3, 32, 48)
    pixels = vit.patchify(image)
    assert torch.equal(pixels, patchify(image, 16))
    kernel = vit.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    content = pixels @ kernel.T + vit.patch_embed.proj.bias
    assert_close(vit.embed(image).content, content, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ('model', 'size', 'parameters'),
    [
        ('vit_base_patch14_dinov2', 518, 86_580_480 - 768),
        ('vit_large_patch14_dinov2', 518, 304_368_640 - 1024),
        ('vit_large_patch14_dinov2', 224, 303_228_928 - 1024),
        ('vit_giant_patch14_dinov2', 518, 1_136_480_768 - 1536),
        ('vit_large_patch16_224.mae', None, 303_301_632),
    ],
)
def test_parameters_are_as_many_as_published(model, size, parameters):
    # The published totals of DINOv2 count the mask token, which is the objective's.
    with torch.device('meta'):
        vit = ViT(model, image_size=size)
    assert sum(p.numel() for p in vit.parameters()) == parameters


def test_statistics_are_those_of_the_base():
    with torch.device('meta'):
        assert ViT('vit_tiny_patch16_224', **TINY).mean == (0.5, 0.5, 0.5)
        assert ViT('vit_small_patch14_dinov2', **TINY).std == (0.229, 0.224, 0.225)


def test_image_size_must_be_a_multiple_of_the_patch():
    vit = ViT('vit_small_patch14_dinov2', image_size=56, **TINY)
    with pytest.raises(
        ValueError,
        match=r'image size \(225, 57\) is not a multiple of patch_size 14: '
        r'crop or pad to \(224, 56\)',
    ):
        vit(torch.zeros(1, 3, 225, 57))
    with pytest.raises(ValueError, match=r'crop or pad to \(98, 98\)'):
        ViT('vit_small_patch14_dinov2', image_size=96, **TINY)


@pytest.mark.parametrize('size', [(0, 56), (56, 0)])
def test_an_image_without_pixels_is_refused(size):
    vit = ViT('vit_small_patch14_dinov2', image_size=56, **TINY)
    with pytest.raises(ValueError, match='is not a multiple of patch_size 14'):
        vit(torch.zeros(1, 3, *size))


def test_number_of_channels_must_be_in_channels():
    vit = ViT('vit_tiny_patch16_224', in_channels=4, image_size=32, **TINY)
    assert vit(torch.zeros(1, 4, 32, 32)).cls.shape == (1, 24)
    with pytest.raises(ValueError, match=r'\(1, 3, 32, 32\).*in_channels = 4'):
        vit(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ('model', 'reason'),
    [
        ('swin_tiny_patch4_window7_224', 'is a SwinTransformer'),
        ('vit_small_patch16_dinov3', 'is a Eva'),
        ('resnet18', 'is a ResNet'),
        ('vit_base_patch16_siglip_224', 'has no class token'),
        ('vit_tiny_r_s16_p8_224', 'embeds patches by HybridEmbed'),
    ],
)
def test_other_architectures_are_refused_with_a_reason(model, reason):
    with (
        torch.device('meta'),
        pytest.raises(ValueError, match=f'{reason}: .* plain timm VisionTransformer'),
    ):
        ViT(model)


def test_unknown_model_is_refused_with_near_names():
    with pytest.raises(ValueError, match='vit_large_patch14_dinov2'):
        ViT('vit_larg_patch14_dinov2')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'img_size': 32}, r'\*img_size\* is set by \*image_size\*'),
        ({'global_pool': 'avg'}, r'\*global_pool\* cannot be chosen'),
        ({'patch_drop_rate': 0.5}, 'drops tokens'),
    ],
)
def test_options_that_break_the_contract_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ViT('vit_tiny_patch16_224', **TINY, **options)


@pytest.mark.parametrize(
    ('model', 'options'),
    [('vit_tiny_patch16_224', {'embed_dims': 24}), ('resnet18', {'image_size': 64})],
)
def test_an_option_that_timm_does_not_know_is_named(model, options):
    with pytest.raises(TypeError, match=r'(embed_dims|img_size).*; ViT takes a plain'):
        ViT(model, **options)


def test_weights_of_a_file_are_loaded_and_the_rest_is_kept(tmp_path):
    source = ViT('vit_tiny_patch16_224', **TINY)
    state = source.canonical_state_dict() | {'mask_token': torch.ones(1, 24)}
    save_file(state, tmp_path / 'base.safetensors')

    vit = ViT(
        'vit_tiny_patch16_224',
        weights=tmp_path / 'base.safetensors',
        in_channels=5,
        **TINY,
    )

    assert_close(vit.record.extras, {'mask_token': torch.ones(1, 24)})
    assert vit.record.fingerprint is not None
    kernel = source.patch_embed.proj.weight[:, [0, 1, 2, 0, 1]] * 3 / 5
    assert_close(vit.patch_embed.proj.weight, kernel)
    assert_close(vit.blocks[1].attn.v.weight, source.blocks[1].attn.v.weight)
