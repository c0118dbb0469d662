import json

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, count, lora
from torchgeo_explora.functional import patchify, sincos_1d, sincos_2d
from torchgeo_explora.models import TemporalViT
from torchgeo_explora.models.checkpoints import from_satmae_temporal

TINY = {'embed_dim': 48, 'depth': 2, 'num_heads': 4, 'mlp_ratio': 2.0}
DATES = torch.tensor(
    [[[13, 6, 7], [0, 0, 0], [14, 11, 23]], [[8, 9, 0]] + [[1, 8, 11]] * 2]
)


def backbone(**options):
    torch.manual_seed(0)
    settings = {'image_size': 32, 'patch_size': 8, 'time_embed_dim': 24, **TINY}
    return TemporalViT(**settings | options)


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_those_of_the_formula():
    vit = backbone().eval()
    image = images(2, 3, 3, 32, 32)
    content, position, grid = vit.embed(image, timestamps=DATES)

    assert grid == (3, 4, 4)
    kernel = vit.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    place = sincos_2d((4, 4), 24)
    for b in range(2):
        for t in range(3):
            rows = patchify(image[b, t][None], 8)[0] @ kernel.T
            tokens = slice(16 * t, 16 * t + 16)
            expected = rows + vit.patch_embed.proj.bias
            assert_close(content[b, tokens], expected)
            code = torch.cat([sincos_1d(DATES[b, t, i][None], 8)[0] for i in range(3)])
            expected = torch.cat([place, code.expand(16, -1)], dim=1)
            assert torch.equal(position[b, tokens], expected)


def test_features_are_those_of_plain_blocks_over_all_images():
    vit = backbone().eval()
    with torch.no_grad():
        vit.pos_embed[:, 0] = 0.5
    image = images(2, 3, 3, 32, 32)
    content, position, _ = vit.embed(image, timestamps=DATES)
    cls = vit.cls_token[0].clone()
    cls[:, :24] += 0.5
    x = torch.cat([cls.expand(2, 1, -1), content + position], dim=1)
    for block in vit.blocks:
        x = block(x)
    features = vit(image, timestamps=DATES)
    assert_close(features.cls, vit.norm(x[:, 0]))
    assert_close(features.patch, vit.norm(x[:, 1:]))


def test_class_token_and_gradients_equal_those_of_satmae(golden):
    tensors, config = golden('satmae_temporal_vit')
    sizes = {'image_size': 32, 'patch_size': 8, 'time_embed_dim': 384}
    names = ('embed_dim', 'depth', 'num_heads', 'mlp_ratio')
    vit = TemporalViT(**sizes, **{name: config['model'][name] for name in names})
    state, rest = from_satmae_temporal(
        {
            key[3:].replace('finalnorm', 'norm'): value
            for key, value in tensors.items()
            if key.startswith('sd.')
        }
    )
    vit.load_state_dict(state)

    features = vit(tensors['in.imgs'], timestamps=tensors['in.timestamps'])
    close = {'atol': 5e-5, 'rtol': 1e-4}
    assert_close(features.cls, tensors['out.pool0.features'], **close)
    logits = features.cls @ rest['head.weight'].T + rest['head.bias']
    assert_close(logits, tensors['out.pool0.logits'], **close)
    (logits * tensors['in.cotangent']).sum().backward()
    for key in ('cls_token', 'patch_embed.proj.bias'):
        grad = vit.get_parameter(key).grad
        assert_close(grad, tensors[f'grad.pool0.{key}'], **close)
    norm = vit.pos_embed.grad.norm()
    assert_close(norm, tensors['out.pool0.gradnorm.pos_embed'], **close)


@pytest.mark.parametrize('times', [1, 2, 5])
def test_a_series_may_have_any_length(times):
    image, dates = images(2, times, 3, 32, 32), DATES[:, :1].expand(-1, times, -1)
    features = backbone()(image, timestamps=dates)
    assert features.patch.shape == (2, 16 * times, 48)


def test_an_image_does_not_know_its_place_in_the_series():
    # Only its time tells: a series in another order gives the same, reordered.
    vit = backbone().eval()
    image = images(1, 3, 3, 32, 32)
    one = vit(image, timestamps=DATES[:1])
    other = vit(image.flip(1), timestamps=DATES[:1].flip(1))
    assert_close(one.cls, other.cls)
    flipped = other.patch.unflatten(1, (3, 16)).flip(1).flatten(1, 2)
    assert_close(one.patch, flipped)


def test_patchify_follows_the_order_of_embed():
    vit = backbone(image_size=(16, 24))
    image = images(2, 3, 3, 16, 24)
    pixels = vit.patchify(image)
    expected = [patchify(image[:, t], 8) for t in range(3)]
    assert torch.equal(pixels, torch.cat(expected, dim=1))


@pytest.mark.parametrize('kind', [torch.int8, torch.uint8, torch.int64, torch.float32])
def test_time_codes_do_not_depend_on_the_type_of_the_times(kind):
    vit, image = backbone(), images(2, 3, 3, 32, 32)
    found, expected = (
        vit.embed(image, timestamps=times).position for times in (DATES.to(kind), DATES)
    )
    assert torch.equal(found, expected)
    assert torch.equal(vit.time_code(DATES.to(kind)), vit.time_code(DATES))


@pytest.mark.parametrize(
    ('timestamps', 'message'),
    [
        (None, r'must be \(1, 2, 3\), year - 2002.*the batch has no such tensor'),
        (torch.zeros(1, 2), r'their shape is \(1, 2\)'),
        (torch.zeros(1, 3, 3), r'their shape is \(1, 3, 3\)'),
        (torch.tensor([[[2015, 3, 4], [1, 1, 1]]]), r'among them is \[2015, 3, 4\]'),
        (torch.tensor([[[1, 1, 1], [13, 12, 4]]]), r'among them is \[13, 12, 4\]'),
        (torch.tensor([[[1, 1, 1], [13, -1, 4]]]), r'among them is \[13, -1, 4\]'),
        (torch.tensor([[[1, 1, 24], [1, 1, 1]]]), r'among them is \[1, 1, 24\]'),
        (torch.tensor([[[1, 1, torch.nan], [1, 1, 1]]]), 'among them is .*nan'),
    ],
)
def test_timestamps_that_are_missing_or_malformed_are_refused(timestamps, message):
    given = {} if timestamps is None else {'timestamps': timestamps}
    with pytest.raises(ValueError, match=message):
        backbone()(images(1, 2, 3, 32, 32), **given)


@pytest.mark.parametrize('shape', [(2, 3, 32, 32), (2, 3, 4, 32, 32)])
def test_an_image_that_is_no_series_of_rgb_is_refused(shape):
    vit = backbone()
    with pytest.raises(ValueError, match=r'expected a series \(B, T, C, H, W\)'):
        vit(images(*shape), timestamps=DATES)
    with pytest.raises(ValueError, match=r'expected a series \(B, T, C, H, W\)'):
        vit.patchify(images(*shape))


def test_an_image_that_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match=r'\(36, 32\) is not a multiple'):
        backbone()(images(2, 3, 3, 36, 32), timestamps=DATES)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'time_embed_dim': 16}, r'\*time_embed_dim\* 16 is not a multiple of 6'),
        ({'time_embed_dim': 48}, 'leaves 0 of embed_dim 48.*: choose 12'),
        ({'time_embed_dim': 384}, 'leaves -336'),
        ({'time_embed_dim': 6}, 'leaves 42'),
    ],
)
def test_widths_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**options)


def test_arguments_build_the_same_architecture_even_from_json():
    vit = backbone()
    other = TemporalViT(**json.loads(json.dumps(vit.arguments)))
    other.load_state_dict(vit.state_dict())
    assert other.arguments == vit.arguments
    image = images(2, 3, 3, 32, 32)
    assert_close(other(image, timestamps=DATES), vit(image, timestamps=DATES))


def test_every_parameter_receives_a_gradient():
    vit = backbone()
    features = vit(images(2, 3, 3, 32, 32), timestamps=DATES)
    (features.cls.square().sum() + features.patch.square().sum()).backward()
    assert all(p.grad is not None for p in vit.parameters())


def test_parameters_are_as_many_as_published():
    with torch.device('meta'):
        vit = TemporalViT()
    assert sum(p.numel() for p in vit.parameters()) == 303_225_984
    trained, _ = count(adapt(vit, Adaptation([23], cls_token=False, adapter=lora(32))))
    assert trained == 15_707_136
