"""Tests of the shared teacher and its moving average."""

import copy

import pytest
import torch
from torch import nn

from torchgeo_explora.adapt import Adaptation, adapt, ema_update_, merged, twin


def test_twin_shares_exactly_the_frozen_tensors(tiny_backbone, images):
    student = adapt(tiny_backbone, Adaptation()).eval()
    teacher = twin(student)
    pairs = zip(teacher.named_parameters(), student.parameters(), strict=True)
    for (name, own), other in pairs:
        assert (own is other) is not other.requires_grad, name
    torch.testing.assert_close(teacher(images), student(images), rtol=0, atol=0)


def test_twin_neither_trains_nor_drops(tiny_backbone):
    student = adapt(tiny_backbone, Adaptation()).train()
    teacher = twin(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert student.training


def test_twin_of_a_plain_module_shares_nothing(tiny_backbone):
    teacher = twin(tiny_backbone)
    own = {id(p) for p in teacher.parameters()}
    assert own.isdisjoint(id(p) for p in tiny_backbone.parameters())


def test_sharing_survives_a_further_copy(tiny_backbone):
    student = adapt(tiny_backbone, Adaptation())
    pair = copy.deepcopy(nn.ModuleList([student, twin(student)]))
    weight = 'blocks.0.mlp.fc1.weight'
    assert pair[0].get_parameter(weight) is pair[1].get_parameter(weight)
    assert pair[0].get_parameter(weight) is not student.get_parameter(weight)


def test_merging_the_student_leaves_the_twin(tiny_backbone, images, disturb):
    student = adapt(tiny_backbone, Adaptation())
    teacher = twin(student)
    before = teacher(images)
    merged(disturb(student))
    torch.testing.assert_close(teacher(images), before, rtol=0, atol=0)


@pytest.mark.parametrize('momentum', [0.0, 0.25, 0.994, 1.0])
def test_teacher_moves_by_the_formula(tiny_backbone, disturb, momentum):
    student = adapt(tiny_backbone, Adaptation())
    teacher = twin(student)
    disturb(student)
    before = copy.deepcopy(teacher.state_dict())
    ema_update_(teacher, student, momentum)
    after, target = teacher.state_dict(), student.state_dict()
    for name in after:
        expected = before[name].double().lerp(target[name].double(), 1 - momentum)
        torch.testing.assert_close(after[name], expected.float())
    exact = {0.0: target, 1.0: before}.get(momentum)
    if exact is not None:
        torch.testing.assert_close(after, exact, rtol=0, atol=0)


def test_equal_teacher_does_not_drift(tiny_backbone):
    student = adapt(tiny_backbone, Adaptation())
    teacher = twin(student)
    for _ in range(50):
        ema_update_(teacher, student, 0.9973)
    torch.testing.assert_close(
        teacher.state_dict(), student.state_dict(), rtol=0, atol=0
    )


def test_frozen_student_moves_nothing(tiny_backbone):
    student = adapt(
        tiny_backbone, Adaptation((), norms=False, cls_token=False, adapter=None)
    )
    teacher = twin(student)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    ema_update_(teacher, student, 0.5)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)


def test_twin_made_before_adapt_is_refused(tiny_backbone):
    teacher = twin(tiny_backbone)
    with pytest.raises(ValueError, match='make the twin after `adapt`'):
        ema_update_(teacher, adapt(tiny_backbone, Adaptation()), 0.9)


def test_shared_trainable_tensor_is_refused(tiny_backbone):
    student = adapt(tiny_backbone, Adaptation())
    with pytest.raises(ValueError, match='share a trainable tensor'):
        ema_update_(student, student, 0.9)
