"""Tests of what the delta is, how large it is, and of fingerprints."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    base_fingerprint,
    count,
    delta_state_dict,
    fingerprint,
    lora,
    merged,
    twin,
)
from torchgeo_explora.models import ViT

LARGE, GIANT = 'vit_large_patch14_dinov2', 'vit_giant_patch14_dinov2'
BASE = 'vit_base_patch14_dinov2'


def test_delta_of_student_and_twin_have_the_same_keys(tiny_backbone):
    student = adapt(tiny_backbone, Adaptation())
    keys = {name for name, p in student.named_parameters() if p.requires_grad}
    assert set(delta_state_dict(student)) == keys
    assert set(delta_state_dict(twin(student))) == keys


def test_delta_of_a_task_lacks_only_the_bases(tiny_backbone):
    student = adapt(tiny_backbone, Adaptation())
    task = nn.ModuleDict(
        {'student': student, 'teacher': twin(student), 'head': nn.Linear(4, 2)}
    )
    task.head.bias.requires_grad_(False)
    expected = {f'student.{key}' for key in delta_state_dict(student)}
    expected |= {f'teacher.{key}' for key in delta_state_dict(student)}
    found = delta_state_dict(task)
    assert set(found) == expected | {'head.weight', 'head.bias'}
    missing, unexpected = task.load_state_dict(found, strict=False)
    assert not unexpected
    assert set(missing) == set(task.state_dict()) - set(found)


def test_delta_of_a_plain_module_is_its_state(tiny_backbone):
    assert delta_state_dict(tiny_backbone).keys() == tiny_backbone.state_dict().keys()


@pytest.mark.parametrize(
    ('model', 'adaptation', 'expected'),
    [
        (LARGE, Adaptation(), 18_724_864),
        (LARGE, Adaptation(cls_token=False), 18_723_840),
        (LARGE, Adaptation((), cls_token=False), 6_391_808),
        (LARGE, Adaptation(adapter=lora(8), cls_token=False), 13_448_192),
        (LARGE, Adaptation((0, -1), adapter=lora(32), cls_token=False), 28_172_288),
        (LARGE, Adaptation((0, -1), cls_token=False), 31_055_872),
        (
            LARGE,
            Adaptation((0, -1), norms=False, cls_token=False, adapter=None),
            25_196_544,
        ),
        (BASE, Adaptation((11,), cls_token=False), 9_287_424),
        (GIANT, Adaptation((31,), cls_token=False), 43_914_752),
    ],
)
def test_delta_has_the_published_size(model, adaptation, expected):
    with torch.device('meta'):
        backbone = ViT(model, image_size=224)
    before = sum(p.numel() for p in backbone.parameters())
    assert count(adapt(backbone, adaptation)) == (expected, before)
    assert count(twin(backbone)) == (expected, before)


def test_large_model_trains_six_percent():
    with torch.device('meta'):
        backbone = adapt(ViT(LARGE, image_size=224), Adaptation())
    delta, base = count(backbone)
    assert round(base / 1e6, 1) == 303.2
    assert round(100 * delta / base, 1) == 6.2


def test_count_of_a_plain_module_is_what_trains():
    layer = nn.Linear(4, 2)
    layer.bias.requires_grad_(False)
    assert count(layer) == (8, 10)


def test_fingerprint_follows_its_definition():
    state = {'b': torch.arange(6.0).view(2, 3), 'a': torch.tensor(0.5)}
    digest = hashlib.sha256(b'a ()\n' + np.float32(0.5).astype('<f4').tobytes())
    digest.update(b'b (2, 3)\n' + np.arange(6, dtype='<f4').tobytes())
    assert fingerprint(state) == digest.hexdigest()


def test_fingerprint_ignores_order_storage_and_layout():
    values = torch.arange(6.0).view(2, 3)
    state = {'a': values, 'b': torch.zeros(0)}
    other = {'b': torch.zeros(0), 'a': values.t().contiguous().t().bfloat16()}
    assert fingerprint(other) == fingerprint(state)


@pytest.mark.parametrize(
    'other', [{'b': torch.ones(2)}, {'a': torch.ones(2, 1)}, {'a': torch.zeros(2)}]
)
def test_fingerprint_sees_name_shape_and_value(other):
    assert fingerprint(other) != fingerprint({'a': torch.ones(2)})


def test_base_fingerprint_is_that_of_the_loaded_weights(tiny_backbone):
    state = tiny_backbone.canonical_state_dict()
    loaded = fingerprint(state)
    tiny_backbone.load_state_dict(state)
    with torch.no_grad():
        tiny_backbone.cls_token.add_(1)
    assert base_fingerprint(tiny_backbone) == loaded


def test_base_fingerprint_of_merged_weights_is_another(tiny_backbone, disturb):
    before = base_fingerprint(tiny_backbone)
    disturb(adapt(tiny_backbone, Adaptation()))
    assert base_fingerprint(tiny_backbone) == before
    plain = merged(tiny_backbone)
    assert base_fingerprint(plain) == fingerprint(plain.canonical_state_dict())
    assert base_fingerprint(plain) != before


def test_base_fingerprint_of_any_module_is_that_of_its_state():
    layer = nn.Linear(2, 2)
    assert base_fingerprint(layer) == fingerprint(layer.state_dict())
    assert base_fingerprint(layer.to('meta')) is None
