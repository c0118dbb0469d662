"""Decoders of spectral groups and of series: codes, bands and series put in place."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, count, lora
from torchgeo_explora.functional import patchify, sincos_1d, sincos_2d
from torchgeo_explora.models import GroupChannelViT, TemporalViT
from torchgeo_explora.models.checkpoints import fuse_qkv
from torchgeo_explora.models.heads.coded_decoders import (
    GroupChannelDecoder,
    TemporalDecoder,
)
from torchgeo_explora.models.heads.mae_decoder import MAEDecoder

SATMAE = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
SIZES = {'dim': 24, 'depth': 1, 'heads': 2}


def groups(indices=((0, 3), (1,), (2, 4, 5)), **options):
    torch.manual_seed(0)
    return GroupChannelDecoder(12, indices, 4, (2, 3), channel_dim=8, **SIZES | options)


def series():
    torch.manual_seed(0)
    return TemporalDecoder(12, 3, 4, (2, 3), time_dim=12, **SIZES)


def test_tokens_carry_position_and_code_of_their_group():
    decoder = groups()
    position = decoder.position((3, 2, 3), decoder.code({}))
    assert position.shape == (1, 18, 24)
    place = sincos_2d((2, 3), 16)
    codes = sincos_1d(torch.arange(4), 8)
    for g in range(3):
        tokens = position[0, 6 * g : 6 * g + 6]
        assert torch.equal(tokens[:, :16], place)
        assert torch.equal(tokens[:, 16:], codes[g].expand(6, -1))
    # The class token has the last code.
    assert torch.equal(decoder.class_code()[0, 0], codes[3])


def test_tokens_carry_position_and_code_of_their_time():
    decoder = series()
    dates = torch.tensor([[[13, 6, 7], [0, 11, 23]], [[1, 2, 3], [4, 5, 6]]])
    code = decoder.code({'timestamps': dates})
    position = decoder.position((2, 2, 3), code)
    assert position.shape == (2, 12, 24)
    for b in range(2):
        for t in range(2):
            parts = [sincos_1d(dates[b, t, i][None], 4)[0] for i in range(3)]
            tokens = position[b, 6 * t : 6 * t + 6]
            assert torch.equal(tokens[:, :12], sincos_2d((2, 3), 12))
            assert torch.equal(tokens[:, 12:], torch.cat(parts).expand(6, -1))
    assert (decoder.class_code() == 0).all()


def test_each_group_has_its_own_prediction_layer():
    decoder = groups()
    x = torch.randn(2, 18, 24)
    bands = decoder.unpacked(decoder.predict(x))
    assert bands.shape == (2, 6, 6, 16)
    for g, channels in enumerate(decoder.groups):
        pixels = decoder.pred[g](x[:, 6 * g : 6 * g + 6])
        for s, channel in enumerate(channels):
            expected = pixels[..., 16 * s : 16 * s + 16]
            assert_close(bands[:, channel], expected)


def test_the_published_order_numbers_outputs_as_if_they_were_bands():
    x = torch.randn(2, 18, 24)
    ours, legacy = groups(), groups(legacy_order=True)
    outputs = [channel for group in ours.groups for channel in group]
    bands = ours.unpacked(ours.predict(x))
    assert_close(legacy.unpacked(legacy.predict(x)), bands[:, outputs])


def test_a_hidden_group_teaches_its_own_layer_alone():
    """docs/group_channel_order.md: as published, one output of group 1 instead."""
    for legacy in (False, True):
        decoder = groups(SATMAE, legacy_order=legacy)
        rows = decoder.predict(torch.randn(1, 18, 24))
        rows[:, :6].square().sum().backward()  # the tokens of group 0
        taught = [layer.weight.grad is not None for layer in decoder.pred]
        sizes = [
            layer.weight.grad.unflatten(0, (-1, 16)).flatten(1).norm(dim=1) > 0
            for layer, given in zip(decoder.pred, taught, strict=True)
            if given
        ]
        found = [bool(s) for size in sizes for s in size]
        expected = [True] * 4 + [False] * 6
        if legacy:
            # Bands 0, 1, 2 and 6; output 6 is the third of group 1.
            expected = [*[True] * 3, False, *[False] * 2, True, *[False] * 3]
        assert found == expected


def test_bands_and_pixels_undo_the_backbones_patches():
    bands = tuple('abcdef')
    names = [['a', 'd'], ['b'], ['c', 'e', 'f']]
    vit = GroupChannelViT(bands, names, (8, 12), 4, 24, 1, 2, channel_embed_dim=8)
    decoder = GroupChannelDecoder(
        24, vit.group_indices, 4, vit.grid, channel_dim=8, **SIZES
    )
    image = torch.randn(2, 6, 8, 12)
    rows = vit.patchify(image)
    assert torch.equal(decoder.pixels(rows, (3, 2, 3)), image)
    for channel in range(6):
        single = patchify(image[:, channel : channel + 1], 4, 'chw')
        assert torch.equal(decoder.unpacked(rows)[:, channel], single)


def test_statistics_of_a_place_are_over_all_its_bands():
    bands = tuple('abcdef')
    names = [['a', 'd'], ['b'], ['c', 'e', 'f']]
    vit = GroupChannelViT(bands, names, (8, 12), 4, 24, 1, 2, channel_embed_dim=8)
    decoder = GroupChannelDecoder(
        24, vit.group_indices, 4, vit.grid, channel_dim=8, **SIZES
    )
    image = torch.randn(2, 6, 8, 12)
    mean, std = decoder.statistics(vit.patchify(image))
    places = patchify(image, 4, 'chw')
    expected = places.mean(-1, keepdim=True), (places.var(-1, keepdim=True) + 1e-6)
    assert_close(mean, expected[0].repeat(1, 3, 1))
    assert_close(std, expected[1].sqrt().repeat(1, 3, 1))


def test_pixels_undo_the_patches_of_a_series():
    vit = TemporalViT((8, 12), 4, 24, 1, 2, time_embed_dim=12)
    image = torch.randn(2, 4, 3, 8, 12)
    assert torch.equal(series().pixels(vit.patchify(image), (4, 2, 3)), image)


def test_parameters_of_satmaes_decoders():
    with torch.device('meta'):
        decoder = GroupChannelDecoder(1024, SATMAE, 8, (12, 12))
        assert sum(p.numel() for p in decoder.pred.parameters()) == 328_320
        assert decoder.pos_embed.shape == (1, 145, 384)
        assert decoder.channel_embed.shape == (1, 4, 128)
        adapt(
            decoder, Adaptation((), cls_token=False, adapter=lora(32), modules=['pred'])
        )
        assert count(decoder)[0] == 541_696 + 328_320
        assert TemporalDecoder(1024, 3, 16, (14, 14)).pos_embed.shape == (1, 197, 320)


def _published(decoder):
    return {
        name if name == 'mask_token' else f'decoder_{name}': value
        for name, value in fuse_qkv(decoder.state_dict()).items()
    }


def test_blocks_of_an_rgb_decoder_serve_groups():
    torch.manual_seed(1)
    rgb = MAEDecoder(12, 3, 8, (4, 4), **SIZES)
    decoder = groups()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    assert decoder.start_from(_published(rgb)) == ('pred',)
    for name, value in decoder.state_dict().items():
        if name.startswith(('pred', 'pos_embed', 'channel_embed')):
            assert torch.equal(value, before[name])
        else:
            assert torch.equal(value, rgb.state_dict()[name])


def test_an_rgb_decoder_serves_series_with_its_prediction_layer():
    torch.manual_seed(1)
    rgb = MAEDecoder(12, 3, 4, (4, 4), **SIZES)
    decoder = series()
    assert decoder.start_from(_published(rgb)) == ()
    assert torch.equal(decoder.pred.weight, rgb.pred.weight)
    assert torch.equal(decoder.pos_embed[0, 1:], sincos_2d((2, 3), 12))


@pytest.mark.parametrize('build', [groups, series])
def test_own_kind_of_decoder_loads_whole(build):
    decoder, other = build(), build()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_()
    assert other.start_from(_published(decoder)) == ()
    for name, value in decoder.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
