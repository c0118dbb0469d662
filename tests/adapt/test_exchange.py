"""LoRA that has learned nothing, exchanged for another adapter."""

import pytest
import torch
from peft import IA3Config, LoraConfig, inject_adapter_in_model

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    count,
    delta_state_dict,
    exchange_adapter,
    lora,
    merged,
    store_frozen,
)

WIDE = LoraConfig(r=2, lora_alpha=8, target_modules='all-linear')
ADAPTATION = {'modules': ('patch_embed',), 'unfreeze': (0,)}


def _state(backbone):
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def _same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def _flags(backbone):
    return {name: p.requires_grad for name, p in backbone.named_parameters()}


def _folded(backbone):
    """A base with a lineage, of which a part was frozen before."""
    backbone.pos_embed.requires_grad_(False)
    return merged(adapt(backbone, Adaptation(adapter=lora(4))))


def test_exchanged_is_as_adapted_so_at_first(tiny_backbone):
    base = _folded(tiny_backbone).eval()
    image = torch.randn(2, 3, 32, 32)
    before = base(image)
    expected = adapt(merged(base), Adaptation(adapter=WIDE, **ADAPTATION))
    found = adapt(merged(base), Adaptation(adapter=lora(4), **ADAPTATION)).eval()
    exchange_adapter(found, WIDE)
    assert _flags(found) == _flags(expected)
    assert count(found) == count(expected)
    # fc1 and fc2 have four times the width: 2 x (4 x 48 + 2 x 120) a block.
    names = [name for name in delta_state_dict(found) if '.lora_' in name]
    assert sum(found.state_dict()[name].numel() for name in names) == 2 * 864
    assert {name.split('.')[1] for name in names} == {'1', '2'}
    assert found.record == expected.record
    assert found.record.lineage
    for part, original in zip(found(image), before, strict=True):
        assert torch.equal(part, original)


def test_frozen_weights_stay_rounded_and_the_adapter_is_not(tiny_backbone):
    backbone = adapt(tiny_backbone, Adaptation(adapter=lora(4)))
    store_frozen(backbone, torch.bfloat16)
    frozen = {
        name.replace('.base_layer', ''): (id(p), p.dtype, p.clone())
        for name, p in backbone.named_parameters()
        if not p.requires_grad
    }
    exchange_adapter(backbone, WIDE)
    parameters = {
        name.replace('.base_layer', ''): p for name, p in backbone.named_parameters()
    }
    for name, (identity, dtype, value) in frozen.items():
        parameter = parameters[name]
        assert (id(parameter), parameter.dtype) == (identity, dtype)
        assert torch.equal(parameter, value)
    downs = [p for name, p in parameters.items() if '.lora_A.' in name]
    assert downs
    for down in downs:
        assert down.dtype == torch.float32
        assert not torch.equal(down, down.bfloat16().float())
    layer = backbone.blocks[0].attn.k.base_layer
    assert layer.weight.dtype == torch.bfloat16
    assert len(layer._forward_pre_hooks) == 1
    assert backbone.record.rounded


def test_lora_that_has_learned_stays(tiny_backbone):
    backbone = adapt(tiny_backbone, Adaptation(adapter=lora(4)))
    with torch.no_grad():
        backbone.blocks[1].attn.v.lora_B.default.weight[3, 1] = 1e-8
    before = _state(backbone)
    with pytest.raises(ValueError, match='it has learned something'):
        exchange_adapter(backbone, WIDE)
    _same(_state(backbone), before)
    assert backbone.record.adapted.adaptation.adapter == lora(4)


def test_adapters_of_others_stay(tiny_backbone):
    rule = IA3Config(target_modules=['fc1'], feedforward_modules=[])
    inject_adapter_in_model(rule, tiny_backbone)
    # As that of weights loaded from a file.
    tiny_backbone.record.fingerprint = '0' * 64
    backbone = adapt(tiny_backbone, Adaptation(adapter=lora(4)))
    before = _state(backbone)
    with pytest.raises(ValueError, match=r'blocks\.0\.mlp\.fc1 has another'):
        exchange_adapter(backbone, WIDE)
    _same(_state(backbone), before)


def test_an_adapter_that_does_not_fit_leaves_the_adaptation(tiny_backbone):
    image = torch.randn(2, 3, 32, 32)
    backbone = adapt(tiny_backbone, Adaptation(adapter=lora(4))).eval()
    before, flags, record = backbone(image), _flags(backbone), backbone.record.adapted
    with pytest.raises(ValueError, match='match no layer'):
        exchange_adapter(backbone, LoraConfig(r=2, target_modules=['w12']))
    assert _flags(backbone) == flags
    assert backbone.record.adapted == record
    assert torch.equal(backbone(image).cls, before.cls)


def test_a_plain_backbone_has_nothing_to_exchange(tiny_backbone):
    with pytest.raises(ValueError, match='is not adapted'):
        exchange_adapter(tiny_backbone, WIDE)
