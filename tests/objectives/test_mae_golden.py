"""Losses and gradients of MAE and SatMAE, against the official implementations."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.functional import random_mask
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT
from torchgeo_explora.models.checkpoints import (
    from_mae,
    from_satmae_group,
    from_satmae_temporal,
    fuse_qkv,
)
from torchgeo_explora.objectives import MAE


def _strip(tensors, prefix):
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


def _gradients(objective):
    """Return the gradients under the published names."""
    found = {name: p.grad for name, p in objective.student.named_parameters()}
    for name, parameter in objective.decoder.named_parameters():
        name = name if name == 'mask_token' else f'decoder_{name}'
        found[name] = parameter.grad
    return fuse_qkv({name: grad for name, grad in found.items() if grad is not None})


def _assert_parity(objective, tensors, run, mask, image, **metadata):
    loss = objective.loss(image, mask, **metadata)
    loss.backward()
    assert_close(loss, tensors[f'out.{run}.loss'], rtol=1e-4, atol=0)
    found = _gradients(objective)
    norms = _strip(tensors, f'out.{run}.gradnorm.')
    # Codes, which the references keep fixed, train here.
    assert norms.keys() <= found.keys()
    for name, norm in norms.items():
        assert_close(found[name].norm(), norm, rtol=1e-4, atol=1e-7, msg=name)
    for name, grad in _strip(tensors, f'grad.{run}.').items():
        scale = 1e-4 * grad.abs().max().item()
        assert_close(found[name], grad, rtol=0, atol=scale, msg=name)


def _weights(golden, name, parts):
    tensors = {}
    for part in range(1, parts + 1):
        tensors |= _strip(golden(f'{name}_weights_{part}')[0], 'sd.')
    return tensors


@pytest.mark.parametrize('norm_pix', [0, 1])
def test_mae(golden, norm_pix):
    tensors, _ = golden('mae')
    state, rest = from_mae(_weights(golden, 'mae', 4))
    student = ViT(
        'vit_base_patch16_224', image_size=64, embed_dim=48, depth=3, num_heads=4
    )
    student.load_state_dict(state)
    objective = MAE(student, 32, 2, 4, norm_pix=bool(norm_pix))
    objective.decoder.load_state_dict(rest)

    mask = random_mask(tensors['in.noise'], 0.75)
    assert torch.equal(mask.float(), tensors['out.mask'])
    image = tensors['in.imgs']
    prediction, _ = objective.reconstruct(image, mask)
    assert_close(prediction[:, :4], tensors['out.pred'], rtol=1e-4, atol=1e-5)
    _assert_parity(objective, tensors, f'normpix{norm_pix}', mask, image)
    if norm_pix:
        for ratio in (0.5, 0.9):
            loss = objective.loss(image, random_mask(tensors['in.noise'], ratio))
            expected = tensors[f'out.other_ratio.{ratio}.loss_normpix1']
            assert_close(loss, expected, rtol=1e-4, atol=0)


@pytest.fixture
def group_mae(golden):
    """Return a function from (norm_pix, legacy order) to an objective."""
    tensors, config = golden('satmae_group_mae')
    state, rest = from_satmae_group(_weights(golden, 'satmae_group_mae', 2))
    bands = [f'channel {i}' for i in range(10)]
    groups = [[bands[i] for i in g] for g in config['model']['channel_groups']]
    student = GroupChannelViT(bands, groups, 48, 8, 48, 2, 4, 2.0, 16)
    student.load_state_dict(state)

    def build(norm_pix, legacy):
        sizes = (32, 2, 4, 2.0, 8)
        objective = MAE(
            student, *sizes, norm_pix=bool(norm_pix), legacy_channel_order=legacy
        )
        objective.decoder.load_state_dict(rest)
        return objective

    return build, tensors


def _group_mask(tensors, spatial):
    mask = random_mask(tensors[f'in.noise.spatial{spatial}'], 0.75)
    return mask.repeat(1, 3) if spatial else mask


@pytest.mark.parametrize('norm_pix', [0, 1])
@pytest.mark.parametrize('spatial', [0, 1], ids=['independent', 'consistent'])
def test_group_channels_in_the_published_order(group_mae, spatial, norm_pix):
    build, tensors = group_mae
    objective = build(norm_pix, legacy=True)
    mask, image = _group_mask(tensors, spatial), tensors['in.imgs']
    published = tensors[f'out.spatial{spatial}.mask']
    assert torch.equal(mask.float().view(published.shape), published)
    prediction, _ = objective.reconstruct(image, mask)
    if not spatial:
        expected = tensors['out.spatial0.pred']
        assert_close(prediction[0], expected, rtol=1e-4, atol=1e-5)
    run = f'spatial{spatial}.normpix{norm_pix}'
    _assert_parity(objective, tensors, run, mask, image)


def test_orders_differ_in_the_bands_of_two_groups_only(group_mae):
    """docs/group_channel_order.md: two bands come from the wrong group."""
    build, tensors = group_mae
    mask, image = _group_mask(tensors, 0), tensors['in.imgs']
    legacy, target = build(1, legacy=True).reconstruct(image, mask)
    ours, same = build(1, legacy=False).reconstruct(image, mask)
    assert_close(target, same)
    # Band c was given output c of the layers, one after the other.
    outputs = [0, 1, 2, 6, 3, 4, 5, 7, 8, 9]
    assert_close(legacy, ours[:, outputs])
    changed = [c for c in range(10) if not torch.equal(legacy[:, c], ours[:, c])]
    assert changed == [3, 4, 5, 6]


@pytest.mark.parametrize('norm_pix', [0, 1])
@pytest.mark.parametrize('mode', ['plain', 'samemask', 'given'])
def test_temporal(golden, mode, norm_pix):
    tensors, _ = golden('satmae_temporal_mae')
    state, rest = from_satmae_temporal(_strip(tensors, 'sd.'))
    student = TemporalViT(32, 8, 392, 1, 4, 0.125)
    student.load_state_dict(state)
    objective = MAE(student, 200, 2, 4, 0.125, norm_pix=bool(norm_pix))
    objective.decoder.load_state_dict(rest)
    if mode == 'samemask':
        mask = random_mask(tensors['in.noise_same'], 0.75).repeat(1, 3)
    elif mode == 'plain':
        mask = random_mask(tensors['in.noise'], 0.75)
    else:
        mask = tensors['out.given.mask'].bool()
    assert torch.equal(mask.float(), tensors[f'out.{mode}.mask'])
    image, dates = tensors['in.imgs'], tensors['in.timestamps']
    prediction, _ = objective.reconstruct(image, mask, timestamps=dates)
    assert_close(prediction, tensors[f'out.{mode}.pred'], rtol=1e-4, atol=1e-5)
    run = f'{mode}.normpix{norm_pix}'
    _assert_parity(objective, tensors, run, mask, image, timestamps=dates)
