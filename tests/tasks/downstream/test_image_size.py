"""A delta is seen at the size that it was trained on, unless another one is given."""

import pytest

from tests.tasks.small_runs import VIT
from torchgeo_explora.adapt import Adaptation, adapt, save_delta
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraDetectionTask,
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

    def write(size, kind=ViT, **changes):
        options = VIT['model_args'] | changes
        backbone = kind(VIT['model'], image_size=size, **options)
        save_delta(adapt(backbone, Adaptation((-1,))), tmp_path / 'delta.safetensors')
        return str(tmp_path / 'delta.safetensors')

    return write


TASKS = [
    (ExploraKNNTask, {}),
    (ExploraLinearProbeTask, {'num_classes': 2}),
    (ExploraClassificationTask, {'num_classes': 2}),
    (ExploraSegmentationTask, {'num_classes': 2}),
    (ExploraDetectionTask, {'num_classes': 2}),
]


class ReadsValues(ViT):
    """A backbone that cannot be outlined: its constructor looks at its weights."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.first = next(self.parameters()).sum().item()


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


def test_a_given_backbone_keeps_its_size(delta):
    backbone = ReadsValues(VIT['model'], image_size=64, **VIT['model_args'])
    path = delta(48, ReadsValues)
    task = ExploraKNNTask(model=backbone, weights=None, delta=path)
    assert (task.image_size, task.backbone.image_size) == (64, (64, 64))


def test_a_delta_of_a_class_that_is_not_defined_tells_no_size(delta, monkeypatch):
    place = 'torchgeo_explora.adapt.delta_file.kind_name'
    monkeypatch.setattr(place, lambda backbone: 'elsewhere.MyViT')
    path = delta(48)
    assert trained_side(path) is None
    assert ExploraKNNTask(**ANY_SIZE, delta=path).image_size == 224


def test_a_size_that_does_not_fit_is_said_to_be_the_deltas(delta):
    path = delta(42, patch_size=14)
    with pytest.raises(ValueError, match=f'is 42 because {path} was trained at that'):
        ExploraKNNTask(**ANY_SIZE, delta=path)
    with pytest.raises(ValueError, match='or pad to') as caught:
        ExploraKNNTask(**ANY_SIZE, image_size=42, delta=path)
    assert 'because' not in str(caught.value)
