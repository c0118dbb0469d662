"""The decoder: sizes, codes, and published weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, count, lora
from torchgeo_explora.functional import sincos_2d
from torchgeo_explora.models.backbones.backbone import Features
from torchgeo_explora.models.checkpoints import from_mae, fuse_qkv
from torchgeo_explora.models.heads.mae_decoder import MAEDecoder

GRID = (1, 4, 4)


def build(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {'dim': 16, 'depth': 2, 'heads': 2, 'patch_size': 8, 'grid': (4, 4)}
        return MAEDecoder(24, 3, **sizes | options)


def publish(decoder):
    """Return the weights as MAE's file has them, among a backbone's."""
    state = {
        name if name == 'mask_token' else f'decoder_{name}': value
        for name, value in fuse_qkv(decoder.state_dict()).items()
    }
    return {**state, 'cls_token': torch.zeros(1, 1, 24), 'head.weight': torch.ones(2)}


def run(decoder, visible=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    cls, patch = torch.randn(2, 1 + visible, 24, generator=generator).split(
        [1, visible], 1
    )
    index = torch.stack([torch.randperm(16, generator=generator)[:visible]] * 2)
    return decoder(Features(cls[:, 0], patch), index, GRID, {}), cls, patch, index


def test_prediction_is_that_of_plain_blocks_over_all_places():
    decoder = build()
    prediction, cls, patch, index = run(decoder)
    tokens = decoder.mask_token.repeat(2, 17, 1)
    tokens[:, :1] = decoder.embed(cls)
    for b in range(2):
        tokens[b, 1 + index[b]] = decoder.embed(patch[b])
    tokens[:, 1:] += sincos_2d((4, 4), 16)
    x = decoder.pred(decoder.norm(decoder.blocks(tokens)))
    assert prediction.shape == (2, 16, 192)
    assert_close(prediction, x[:, 1:])


def test_parameters_of_the_published_decoder():
    with torch.device('meta'):
        decoder = MAEDecoder(1024, 3, 16, (14, 14))
    assert count(decoder) == (26_240_256 - 197 * 512, 26_240_256)


@pytest.mark.parametrize(
    ('rank', 'trained'), [(8, 148_480), (16, 279_552), (32, 541_696), (64, 1_065_984)]
)
def test_parameters_of_an_adapted_decoder(rank, trained):
    with torch.device('meta'):
        decoder = MAEDecoder(1024, 3, 16, (14, 14))
        adapt(decoder, Adaptation((), cls_token=False, adapter=lora(rank)))
    assert count(decoder) == (trained, 26_240_256)
    assert not decoder.mask_token.requires_grad


def test_layers_start_as_those_of_mae():
    decoder = build()
    assert decoder.norm.eps == decoder.blocks[0].norm1.eps == 1e-6
    for layer in decoder.modules():
        if isinstance(layer, nn.Linear):
            assert (layer.bias == 0).all()
    # Xavier over the fused projection, whose rows are three times as many.
    bound = (6 / (16 + 48)) ** 0.5
    assert 0.9 * bound < decoder.blocks[0].attn.q.weight.abs().max() <= bound
    assert decoder.blocks[0].mlp.fc1.weight.abs().max() > 0.9 * (6 / 80) ** 0.5


def test_published_names_load_and_leave_other_parts_aside():
    decoder, other = build(), build(1)
    _, rest = from_mae(publish(decoder))
    assert rest['head.weight'].any()
    other.load_state_dict(rest)
    assert torch.equal(run(decoder)[0], run(other)[0])
    third = build(2)
    assert third.start_from(rest) == ()
    assert torch.equal(run(decoder)[0], run(third)[0])


def test_own_names_load():
    decoder, other = build(), build(1)
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(run(decoder)[0], run(other)[0])


def test_table_of_another_grid_is_resized_once():
    decoder, larger = build(), build(grid=(6, 6))
    decoder.load_state_dict(from_mae(publish(larger))[1])
    assert decoder.pos_embed.shape == (1, 17, 16)
    assert (decoder.pos_embed[:, 0] == 0).all()
    # Stretched over the image, as that of the backbone: not the fresh code.
    assert not torch.allclose(decoder.pos_embed[0, 1:], sincos_2d((4, 4), 16))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dim': 32}, '16 wide, 2 blocks deep.*this decoder is 32 wide'),
        ({'depth': 3}, '2 blocks deep.*is 16 wide, 3 blocks deep'),
        ({'mlp_ratio': 2.0}, 'MLP 64 wide.*MLP 32 wide'),
    ],
)
def test_weights_of_another_size_are_refused(options, message):
    _, rest = from_mae(publish(build()))
    decoder = build(**options)
    with pytest.raises(ValueError, match=message):
        decoder.load_state_dict(rest)
    with pytest.raises(ValueError, match=message):
        decoder.start_from(rest)


def test_weights_for_another_backbone_are_refused():
    _, rest = from_mae(publish(build()))
    with pytest.raises(ValueError, match=r'for a backbone 24 wide.*backbone 12 wide'):
        MAEDecoder(12, 3, 8, (4, 4), 16, 2, 2).start_from(rest)


def test_missing_weights_are_named():
    _, rest = from_mae(publish(build()))
    del rest['decoder_norm.bias']
    with pytest.raises(RuntimeError, match=r'norm\.bias'):
        build().load_state_dict(rest)
    with pytest.raises(RuntimeError, match=r'norm\.bias'):
        build().start_from(rest)


def test_prediction_layer_for_other_pixels_starts_anew():
    _, rest = from_mae(publish(build()))
    decoder = build(1, patch_size=4)
    fresh = decoder.pred.weight.clone()
    assert decoder.start_from(rest) == ('pred',)
    assert torch.equal(decoder.pred.weight, fresh)
    assert torch.equal(decoder.embed.weight, rest['decoder_embed.weight'])
