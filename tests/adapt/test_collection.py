"""Several deltas of one base: held, switched, interpolated, averaged."""

import copy

import peft
import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, Deltas, adapt, lora, merged, save_delta

ADAPTATIONS = {
    'a': Adaptation(adapter=lora(4)),
    'b': Adaptation(unfreeze=(0,), adapter=lora(2, 8)),
    'c': Adaptation(adapter=peft.LoHaConfig(r=2, target_modules=['q', 'k'])),
}


@pytest.fixture
def trained(tiny_backbone, disturb):
    """Three backbones of one base with deltas of different kinds."""
    return {
        name: disturb(adapt(copy.deepcopy(tiny_backbone).eval(), adaptation), 0.05 * n)
        for n, (name, adaptation) in enumerate(ADAPTATIONS.items(), 1)
    }


@pytest.fixture
def deltas(tiny_backbone, trained, tmp_path):
    """Their deltas, held over the base."""
    held = Deltas(tiny_backbone.eval())
    for name, backbone in trained.items():
        path = tmp_path / f'{name}.safetensors'
        save_delta(backbone, path, {'note': name})
        held.add(name, path)
    return held


@pytest.fixture
def plain(deltas):
    """The merged backbone of each."""
    return {name: merged(backbone) for name, backbone in deltas.items()}


def test_each_is_the_backbone_that_was_saved(deltas, trained, images):
    for name, expected in trained.items():
        assert_close(deltas[name](images), expected(images), rtol=0, atol=0)
    assert [*deltas] == ['a', 'b', 'c']
    assert {name: m['note'] for name, m in deltas.metadata.items()} == {
        name: name for name in 'abc'
    }
    assert deltas.metadata['a']['adaptation']['adapter']['r'] == 4


@pytest.mark.parametrize('mode', [False, True])
def test_each_has_the_mode_of_the_base(tiny_backbone, tmp_path, mode):
    """The modules of an adapter as well, whose dropout would be on otherwise."""
    plain = copy.deepcopy(tiny_backbone).train(mode)
    save_delta(adapt(tiny_backbone, ADAPTATIONS['a']), tmp_path / 'a.safetensors')
    backbone = Deltas(plain).add('a', tmp_path / 'a.safetensors')
    assert {module.training for module in backbone.modules()} == {mode}


def test_what_is_frozen_in_the_base_is_frozen_in_a_merged_copy(tiny_backbone, tmp_path):
    plain = copy.deepcopy(tiny_backbone).requires_grad_(False)
    save_delta(adapt(tiny_backbone, ADAPTATIONS['a']), tmp_path / 'a.safetensors')
    backbone = Deltas(plain).add('a', tmp_path / 'a.safetensors')
    assert any(p.requires_grad for p in backbone.parameters())
    assert not any(p.requires_grad for p in merged(backbone).parameters())


def test_the_base_is_shared_and_stays(deltas, tiny_backbone, images):
    before = copy.deepcopy(tiny_backbone.state_dict())
    base = {p.data_ptr() for p in tiny_backbone.parameters()}
    for backbone in deltas.values():
        for parameter in backbone.parameters():
            assert (parameter.data_ptr() in base) != parameter.requires_grad
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.requires_grad:
                    parameter.add_(1)
    assert_close(tiny_backbone.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in tiny_backbone.parameters())


def test_average_is_that_of_whole_weights(deltas, plain):
    shares = {'a': 0.2, 'b': 0.5, 'c': 0.3}
    found = deltas.average(shares).state_dict()
    states = {name: backbone.state_dict() for name, backbone in plain.items()}
    for key, tensor in found.items():
        expected = sum(share * states[name][key] for name, share in shares.items())
        assert_close(tensor, expected)
    equal = deltas.average().state_dict()
    key = 'blocks.1.attn.q.weight'
    assert_close(equal[key], sum(state[key] for state in states.values()) / 3)


def test_interpolation_ends_at_both(deltas, plain, images):
    for share, name in ((0, 'a'), (1, 'b')):
        found = deltas.interpolate('a', 'b', share)
        assert_close(found(images), plain[name](images))
        assert type(found) is type(deltas.base)
    middle = deltas.interpolate('a', 'b', 0.5)
    with pytest.raises(AssertionError):
        assert_close(middle(images), plain['a'](images))


def test_average_is_a_base_of_its_own(deltas, disturb, tmp_path, images):
    base = deltas.average({'a': 0.5, 'b': 0.5})
    second = disturb(adapt(copy.deepcopy(base), Adaptation(adapter=lora(2))))
    save_delta(second, tmp_path / 'second.safetensors')
    held = Deltas(base)
    held.add('second', tmp_path / 'second.safetensors')
    assert_close(held['second'](images), second.eval()(images), rtol=0, atol=0)
    assert held.metadata['second']['lineage'] == ''


@pytest.mark.parametrize('shares', [{'a': 0.5}, {'a': 1, 'b': 1}, {}])
def test_shares_must_sum_to_one(deltas, shares):
    with pytest.raises(ValueError, match='must sum to 1'):
        deltas.average(shares)


def test_names_can_be_removed_and_replaced(deltas, tmp_path):
    deltas.remove('a')
    assert 'a' not in deltas
    assert len(deltas) == len(deltas.metadata) == 2
    deltas.add('b', tmp_path / 'c.safetensors')
    assert deltas.metadata['b']['note'] == 'c'
    with pytest.raises(KeyError, match='a'):
        deltas.average({'a': 1.0})


def test_delta_of_another_base_is_not_added(deltas, tmp_path):
    other = copy.deepcopy(deltas.base)
    torch.nn.init.ones_(other.cls_token)
    other.record.fingerprint = None
    with pytest.raises(ValueError, match='load the same weights'):
        Deltas(other).add('a', tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match='need a plain base'):
        Deltas(deltas['a'])
