"""Tests of which weights train, and of folding them in."""

import copy
import json
import warnings

import pytest
import torch
from peft import LoHaConfig, LoraConfig
from timm.layers import LayerScale, RmsNorm
from torch import nn

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    count,
    delta_state_dict,
    fingerprint,
    lora,
    merged,
    twin,
)
from torchgeo_explora.models import ViT


class Block(nn.Module):
    """Layers with a ViT's names and no attention."""

    def __init__(self, width):
        super().__init__()
        self.norm1 = RmsNorm(width)
        self.attn = nn.ModuleDict({n: nn.Linear(width, width) for n in 'qkv'})
        self.ls1 = LayerScale(width, init_values=1.0)

    def forward(self, x):
        y = self.norm1(x)
        return x + self.ls1(sum(layer(y) for layer in self.attn.values()))


class Sequence(nn.Module):
    """Any module that has blocks, such as a decoder."""

    def __init__(self, width=8, depth=3, inner=None):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        if inner is not None:
            self.inner = inner

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def trained(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_defaults_train_last_block_norms_cls_token_and_lora(tiny_backbone):
    names = {name for name, _ in tiny_backbone.named_parameters()}
    adapt(tiny_backbone, Adaptation())
    expected = {name for name in names if name.startswith('blocks.2.')}
    expected |= {
        f'blocks.{i}.{norm}.{kind}'
        for i in range(3)
        for norm in ('norm1', 'norm2')
        for kind in ('weight', 'bias')
    }
    expected |= {
        f'blocks.{i}.attn.{layer}.lora_{matrix}.default.weight'
        for i in range(2)
        for layer in 'qv'
        for matrix in 'AB'
    }
    assert trained(tiny_backbone) == expected | {
        'cls_token',
        'norm.weight',
        'norm.bias',
    }
    adapter = tiny_backbone.blocks[0].attn.q
    assert (adapter.r['default'], adapter.scaling['default']) == (64, 1 / 64)


def test_adapt_keeps_object_class_and_output(tiny_backbone, images):
    before = tiny_backbone.eval()(images)
    assert adapt(tiny_backbone, Adaptation()) is tiny_backbone
    assert type(tiny_backbone) is ViT
    torch.testing.assert_close(tiny_backbone(images), before, rtol=0, atol=0)


def test_exactly_the_delta_receives_a_gradient(tiny_backbone, images):
    adapt(tiny_backbone, Adaptation())
    features = tiny_backbone(images)
    (features.cls.sum() + features.patch.std()).backward()
    with_gradient = {
        n for n, p in tiny_backbone.named_parameters() if p.grad is not None
    }
    assert with_gradient == trained(tiny_backbone)


def test_base_is_bit_identical_after_ten_steps(tiny_backbone, ten_steps):
    adapt(tiny_backbone, Adaptation())
    delta = set(delta_state_dict(tiny_backbone))
    before = copy.deepcopy(tiny_backbone.state_dict())
    ten_steps(tiny_backbone)
    after = tiny_backbone.state_dict()
    assert {key for key in before if torch.equal(before[key], after[key])} == (
        set(before) - delta
    )


@pytest.mark.parametrize('unfreeze', [(-1, 0), [0, 2], (0, 2, -3)])
def test_blocks_are_the_same_from_either_end(unfreeze):
    assert Adaptation(unfreeze).blocks(3) == (0, 2)


@pytest.mark.parametrize('index', [3, -4])
def test_unknown_block_names_the_depth(tiny_backbone, index):
    with pytest.raises(ValueError, match=f'block {index}, this backbone has 3'):
        adapt(tiny_backbone, Adaptation((index,)))


def test_nothing_trains_for_probing(tiny_backbone):
    adapt(tiny_backbone, Adaptation((), norms=False, cls_token=False, adapter=None))
    assert trained(tiny_backbone) == set()
    assert delta_state_dict(tiny_backbone) == {}


def test_whole_backbone_trains_under_the_empty_name(tiny_backbone):
    names = {name for name, _ in tiny_backbone.named_parameters()}
    adapt(tiny_backbone, Adaptation(modules=('',)))
    assert trained(tiny_backbone) == names


def test_adapter_may_find_no_block_left(tiny_backbone):
    adapt(tiny_backbone, Adaptation(unfreeze=range(3)))
    assert not any('lora' in name for name in trained(tiny_backbone))


def test_norms_are_found_by_class_and_layer_scale_is_none():
    module = adapt(Sequence(), Adaptation((), adapter=None))
    norms = {f'blocks.{i}.norm1.weight' for i in range(3)}
    assert trained(module) == norms | {'norm.weight', 'norm.bias'}


def test_modules_and_parameters_train_by_name(tiny_backbone):
    adaptation = Adaptation(
        (),
        norms=False,
        cls_token=False,
        modules=('patch_embed', 'blocks.0.mlp.fc1.bias'),
    )
    adapt(tiny_backbone, adaptation)
    assert {name for name in trained(tiny_backbone) if 'lora' not in name} == {
        'patch_embed.proj.weight',
        'patch_embed.proj.bias',
        'blocks.0.mlp.fc1.bias',
    }


def test_unknown_module_suggests_a_near_name(tiny_backbone):
    with pytest.raises(ValueError, match=r"'patch_embd'.*'patch_embed'"):
        adapt(tiny_backbone, Adaptation(modules=('patch_embd',)))


def test_unknown_target_lists_candidates(tiny_backbone):
    adapter = LoraConfig(target_modules=['q', 'query'])
    with pytest.raises(ValueError, match=r"\['query'\].*attn.q, attn.v, mlp.fc1"):
        adapt(tiny_backbone, Adaptation(adapter=adapter))


def test_adapter_without_targets_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match='name the layers'):
        adapt(tiny_backbone, Adaptation(adapter=LoraConfig()))


def test_adapter_stays_out_of_nested_blocks_of_the_same_name():
    module = adapt(Sequence(inner=Sequence()), Adaptation(adapter=lora(4)))
    adapters = {name for name in trained(module) if 'lora' in name}
    assert len(adapters) == 8
    assert all(name.startswith('blocks.') for name in adapters)


@pytest.mark.parametrize(
    ('targets', 'expected'),
    [
        (r'.*attn\.(q|k)', {'blocks.0.attn.q', 'blocks.0.attn.k'}),
        ('all-linear', {f'blocks.0.attn.{name}' for name in 'qkv'}),
        (['attn.v'], {'blocks.0.attn.v'}),
    ],
)
def test_targets_follow_the_rules_of_peft(targets, expected):
    adapter = LoraConfig(r=2, target_modules=targets)
    module = adapt(Sequence(depth=2), Adaptation(adapter=adapter, norms=False))
    found = {name.split('.lora')[0] for name in trained(module) if '.lora' in name}
    assert found == expected


def test_user_config_stays_as_it_was(tiny_backbone):
    adapter = LoraConfig(r=2, target_modules=['q'], inference_mode=True)
    before = copy.deepcopy(adapter)
    adapt(tiny_backbone, Adaptation(adapter=adapter))
    assert adapter == before
    assert tiny_backbone.blocks[0].attn.q.lora_A.default.weight.requires_grad


def test_adapting_twice_is_refused(tiny_backbone):
    adapt(tiny_backbone, Adaptation())
    with pytest.raises(ValueError, match=r'already adapted.*merged'):
        adapt(tiny_backbone, Adaptation())


def test_module_without_blocks_is_refused():
    with pytest.raises(TypeError, match='Linear has no sequence'):
        adapt(nn.Linear(2, 2), Adaptation())


def test_failure_leaves_the_backbone_as_it_was(tiny_backbone):
    keys = [*tiny_backbone.state_dict()]
    for adaptation in (
        Adaptation(adapter=LoraConfig(target_modules=['q'], init_lora_weights='pissa')),
        Adaptation(adapter=LoraConfig(target_modules=['attn'])),
        Adaptation(modules=('nothing',)),
    ):
        with pytest.raises(ValueError, match=r'adapter|modules'):
            adapt(tiny_backbone, adaptation)
    assert [*tiny_backbone.state_dict()] == keys
    assert all(p.requires_grad for p in tiny_backbone.parameters())
    adapt(tiny_backbone, Adaptation())


def test_trial_of_the_adapter_leaves_the_generator(tiny_backbone):
    state = torch.get_rng_state()
    adapt(tiny_backbone, Adaptation(adapter=lora(4)))
    torch.set_rng_state(state)
    first = torch.empty(4, 24)
    # Two draws per layer: nn.Linear's own, then LoRA's.
    nn.Linear(24, 4, bias=False)
    nn.Linear(4, 24, bias=False)
    nn.init.kaiming_uniform_(first, a=5**0.5)
    torch.testing.assert_close(
        tiny_backbone.blocks[0].attn.q.lora_A.default.weight.data, first
    )


def test_delta_of_a_half_precision_base_is_float32(tiny_backbone):
    adapt(tiny_backbone.bfloat16(), Adaptation())
    for parameter in tiny_backbone.parameters():
        expected = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == expected


def test_base_is_fingerprinted_before_it_changes(tiny_backbone):
    before = fingerprint(tiny_backbone.canonical_state_dict())
    assert adapt(tiny_backbone, Adaptation()).record.fingerprint == before


@pytest.mark.parametrize(
    ('adaptation', 'name'),
    [
        (Adaptation(), '[24]-r64'),
        (Adaptation((0, -1), adapter=lora(32)), '[1,24]-r32'),
        (Adaptation((0, -2, -1), adapter=None), '[1,23,24]'),
        (Adaptation((), adapter=lora(8)), '[]-r8'),
        (
            Adaptation(adapter=LoHaConfig(r=8, target_modules=['q'])),
            '[24]-LOHA-r8',
        ),
    ],
)
def test_name_is_the_notation_of_the_paper(adaptation, name):
    assert adaptation.name(24) == name


def test_adaptation_survives_json():
    adaptation = Adaptation(
        [0, -1], norms=False, adapter=lora(32), modules=['patch_embed']
    )
    plain = json.loads(json.dumps(adaptation.to_dict()))
    assert Adaptation.from_dict(plain) == adaptation
    assert Adaptation.from_dict(Adaptation(adapter=None).to_dict()).adapter is None


def test_unknown_method_asks_for_a_newer_peft():
    plain = Adaptation().to_dict()
    plain['adapter']['peft_type'] = 'TOMORROW'
    with pytest.raises(ValueError, match=r'TOMORROW.*upgrade peft'):
        Adaptation.from_dict(plain)


def test_merged_equals_adapted_and_has_the_plain_keys(tiny_backbone, images, disturb):
    keys = [*tiny_backbone.state_dict()]
    disturb(adapt(tiny_backbone.eval(), Adaptation()))
    before = copy.deepcopy(tiny_backbone.state_dict())
    plain = merged(tiny_backbone)
    assert [*plain.state_dict()] == keys
    assert type(plain) is ViT
    assert plain.record.fingerprint is None
    assert trained(plain) == {name for name, _ in plain.named_parameters()}
    assert not {'adaptation', 'adapted', 'peft_config'} & set(vars(plain))
    torch.testing.assert_close(plain(images), tiny_backbone(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(tiny_backbone.state_dict(), before, rtol=0, atol=0)
    adapt(plain, Adaptation())


def test_merging_twice_equals_merging_once(tiny_backbone, disturb):
    once = merged(disturb(adapt(tiny_backbone, Adaptation())))
    twice = merged(once)
    assert twice is not once
    torch.testing.assert_close(twice.state_dict(), once.state_dict(), rtol=0, atol=0)


def test_merged_twin_equals_merged_student(tiny_backbone, disturb):
    disturb(adapt(tiny_backbone, Adaptation()))
    teacher = merged(twin(tiny_backbone))
    student = merged(tiny_backbone)
    torch.testing.assert_close(
        teacher.state_dict(), student.state_dict(), rtol=0, atol=0
    )
    assert trained(teacher) == trained(student)


def test_merged_restores_what_was_frozen_before():
    module = Sequence()
    module.norm.bias.requires_grad_(False)
    plain = merged(adapt(module, Adaptation(adapter=lora(4))))
    names = {name for name, _ in plain.named_parameters()}
    assert names - trained(plain) == {'norm.bias'}


def test_merging_is_float32_for_half_precision_and_under_autocast(
    tiny_backbone, disturb
):
    disturb(adapt(tiny_backbone, Adaptation()))
    expected = merged(tiny_backbone).state_dict()
    with torch.autocast('cpu', torch.bfloat16):
        found = merged(tiny_backbone).state_dict()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for parameter in tiny_backbone.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    half = merged(tiny_backbone)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    torch.testing.assert_close(half.state_dict(), expected, rtol=1e-2, atol=1e-3)


def test_no_warning_is_given_for_the_default(tiny_backbone):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        plain = merged(adapt(tiny_backbone, Adaptation()))
    assert count(plain)[0] == count(plain)[1]
