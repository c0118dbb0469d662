"""A delta is seen at the size that it was trained on, unless another one is given."""

import pytest

from tests.tasks.small_runs import VIT
from torchgeo_explora.adapt import Adaptation, adapt, save_delta
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraKNNTask,
    ExploraLinearProbeTask,
    ExploraSegmentationTask,
)
from torchgeo_explora.tasks.run.backbone import trained_side

ANY_SIZE = {name: value for name, value in VIT.items() if name != 'image_size'}


@pytest.fixture
def delta(tmp_path, monkeypatch):
    """Return a function that writes a delta trained at a size, and its path."""
    # Every start of a task draws another base.
    place = 'torchgeo_explora.adapt.delta_file.base_fingerprint'
    monkeypatch.setattr(place, lambda backbone: 'base')

    def write(size):
        backbone = ViT(VIT['model'], image_size=size, **VIT['model_args'])
        save_delta(adapt(backbone, Adaptation((-1,))), tmp_path / 'delta.safetensors')
        return str(tmp_path / 'delta.safetensors')

    return write


TASKS = [
    (ExploraKNNTask, {}),
    (ExploraLinearProbeTask, {'num_classes': 2}),
    (ExploraClassificationTask, {'num_classes': 2}),
    (ExploraSegmentationTask, {'num_classes': 2}),
]


@pytest.mark.parametrize(('kind', 'heads'), TASKS)
def test_tasks_follow_the_delta(delta, kind, heads):
    task = kind(**ANY_SIZE, **heads, delta=delta(48))
    assert (task.image_size, task.backbone.image_size) == (48, (48, 48))


def test_a_given_size_wins(delta):
    task = ExploraKNNTask(**VIT | {'image_size': 64}, delta=delta(64))
    assert task.image_size == 64


def test_side_of_views(delta):
    assert trained_side(delta(48)) == 48
    assert trained_side(delta((48, 64))) is None
    assert trained_side(None) is None
