"""Frozen weights in half precision: the same training, the same delta."""

import copy

import pytest
import torch

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    base_fingerprint,
    load_delta,
    lora,
    merged,
    read_delta_metadata,
    save_delta,
    store_frozen,
    twin,
)


@pytest.fixture
def pair(tiny_backbone):
    """The same adapted backbone twice, the second with its base in bfloat16."""
    torch.manual_seed(0)
    plain = adapt(tiny_backbone, Adaptation(adapter=lora(4)))
    for name, parameter in plain.named_parameters():
        if 'lora_B' in name:
            torch.nn.init.normal_(parameter)
    stored = copy.deepcopy(plain)
    store_frozen(stored, torch.bfloat16)
    return plain, stored


def test_no_bit_of_outputs_and_gradients_changes_under_autocast(pair, images):
    results = []
    for backbone in pair:
        with torch.autocast('cpu', torch.bfloat16):
            features = backbone(images, wanted=torch.ones(len(images), 16).bool())
            features.cls.float().square().sum().backward()
        gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
        results.append([*features, *gradients])
    assert len(results[0]) > 20
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_plain_backbone_is_refused_and_unchanged(tiny_backbone):
    tiny_backbone.requires_grad_(False)
    for module in (tiny_backbone, torch.nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(ValueError, match='is not adapted: call `adapt` first'):
            store_frozen(module, torch.bfloat16)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert not any(part._forward_pre_hooks for part in module.modules())
    assert not tiny_backbone.record.rounded


def test_what_trains_stays_whole_and_the_teacher_shares_the_rest(pair, images):
    plain, stored = pair
    halves = [p for p in stored.parameters() if p.dtype == torch.bfloat16]
    assert not any(p.requires_grad for p in halves)
    assert all(p.dtype == torch.float32 for p in stored.parameters() if p.requires_grad)
    assert sum(p.numel() for p in halves) > 0.5 * sum(
        p.numel() for p in plain.parameters()
    )
    teacher = twin(stored)
    assert {id(p) for p in halves} <= {id(p) for p in teacher.parameters()}
    # Outside of autocast too: a callback need not know.
    torch.testing.assert_close(
        teacher(images).cls, plain.eval()(images).cls, rtol=0.05, atol=0.05
    )


def test_delta_belongs_to_the_base_as_it_was_loaded(pair, tmp_path):
    plain, stored = pair
    with pytest.raises(ValueError, match='load_delta'):
        merged(stored)
    with pytest.raises(ValueError, match='load_delta'):
        merged(twin(stored))
    assert base_fingerprint(stored) == base_fingerprint(plain)
    files = [tmp_path / name for name in ('plain.safetensors', 'stored.safetensors')]
    for backbone, file in zip(pair, files, strict=True):
        save_delta(backbone, file)
    # With the SHA-256 of base and delta.
    first, second = (read_delta_metadata(file) for file in files)
    assert first == second
    load_delta(stored, files[0])
    load_delta(plain, files[1])
