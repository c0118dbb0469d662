"""What a run leaves behind without a callback in its configuration."""

import pytest
import torch
from lightning.pytorch import Trainer

from tests.tasks.small_runs import VIT
from torchgeo_explora.adapt import read_delta_metadata
from torchgeo_explora.callbacks import LabelFreeQuality, OnlineKNN
from torchgeo_explora.callbacks.cost import read_cost
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraDinoTask,
    ExploraMAETask,
)

pytestmark = [pytest.mark.cli, pytest.mark.filterwarnings('ignore')]


def fit(task, place, folder, checkpoint=None, **arguments):
    trainer = Trainer(
        **{
            'accelerator': 'cpu',
            'max_steps': 5,
            'logger': False,
            'enable_model_summary': False,
            'num_sanity_val_steps': 0,
            'default_root_dir': place,
            **arguments,
        }
    )
    data = ImageFolderDataModule(folder, batch_size=8)
    trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def step_of(path):
    return torch.load(path, weights_only=True)['global_step']


@pytest.fixture
def no_default_pictures():
    """Draw the pictures: this file is about them."""


@pytest.fixture
def dino(tiny):
    torch.manual_seed(0)
    return ExploraDinoTask(**tiny)


@pytest.fixture
def scores(monkeypatch):
    """Online kNN every two steps, with these accuracies."""
    scores = {0: 0.5, 2: 0.75, 4: 0.625, 5: 0.25}

    def evaluate(self, trainer, pl_module):
        return scores[trainer.global_step]

    defaults = (2, *OnlineKNN.__init__.__defaults__[1:])
    monkeypatch.setattr(OnlineKNN, 'measure', evaluate)
    monkeypatch.setattr(OnlineKNN.__init__, '__defaults__', defaults)


@pytest.mark.usefixtures('scores')
def test_pretraining_keeps_the_best_by_knn_the_last_and_pictures(
    dino, folder, tmp_path
):
    trainer = fit(dino, tmp_path, folder)
    assert step_of(tmp_path / 'best.ckpt') == 2
    assert step_of(tmp_path / 'last.ckpt') == 5
    assert trainer.checkpoint_callback.best_model_score == 0.75
    for name in ('best.safetensors', 'last.safetensors', 'delta.safetensors'):
        assert (tmp_path / name).exists()
    assert {path.stem for path in tmp_path.glob('*.png')} == {
        *('crops', 'curves', 'map', 'neighbours', 'pca')
    }
    cost = read_cost(tmp_path)
    assert (cost['steps'], cost['planned_steps'], cost['images']) == (5, 5, 40)
    metadata = read_delta_metadata(tmp_path / 'delta.safetensors')
    assert metadata['images'] == '40'
    assert float(metadata['tflop']) == pytest.approx(cost['tflop'], rel=1e-5)
    # What depends on the machine would make equal runs unequal.
    assert not {'wall_seconds', 'device', 'energy_kwh'} & metadata.keys()
    metadata = read_delta_metadata(tmp_path / 'best.safetensors')
    assert metadata['images'] == '16'


@pytest.fixture
def unlabelled(folder, tmp_path):
    """Return the images of the training set without their classes."""
    images = tmp_path / 'images'
    images.mkdir()
    for index, path in enumerate((folder / 'train').rglob('*.png')):
        (images / f'{index}.png').symlink_to(path)
    return images


def test_pretraining_without_labels_keeps_what_has_the_highest_rank(
    dino, unlabelled, tmp_path
):
    trainer = fit(dino, tmp_path / 'run', unlabelled)
    checkpoint = trainer.checkpoint_callback
    assert (checkpoint.monitor, checkpoint.mode) == ('quality/rankme', 'max')
    (quality,) = (c for c in trainer.callbacks if isinstance(c, LabelFreeQuality))
    assert checkpoint.best_model_score.item() == pytest.approx(
        quality.history[5]['rankme']
    )
    assert step_of(tmp_path / 'run' / 'best.ckpt') == 5


def test_pretraining_without_any_measure_keeps_the_smallest_loss(
    dino, unlabelled, tmp_path
):
    off = LabelFreeQuality(every_n_steps=0)
    trainer = fit(dino, tmp_path / 'run', unlabelled, callbacks=[off])
    checkpoint = trainer.checkpoint_callback
    assert (checkpoint.monitor, checkpoint.mode) == ('loss', 'min')
    assert checkpoint.best_model_score == trainer.callback_metrics['loss']
    assert step_of(tmp_path / 'run' / 'best.ckpt') == 5
    assert step_of(tmp_path / 'run' / 'last.ckpt') == 5


@pytest.mark.usefixtures('scores')
def test_a_resumed_run_remembers_the_best(dino, tiny, folder, tmp_path):
    fit(dino, tmp_path, folder, max_steps=2)
    torch.manual_seed(0)
    again = ExploraDinoTask(**tiny)
    trainer = fit(again, tmp_path, folder, tmp_path / 'last.ckpt')
    assert trainer.checkpoint_callback.best_model_score == 0.75
    assert step_of(tmp_path / 'best.ckpt') == 2
    assert step_of(tmp_path / 'last.ckpt') == 5
    assert read_delta_metadata(tmp_path / 'delta.safetensors')['images'] == '40'


@pytest.mark.parametrize('task', [ExploraDinoTask, ExploraMAETask])
def test_a_trial_leaves_only_the_delta(task, tiny, folder, tmp_path):
    arguments = {
        name: tiny[name]
        for name in ('model', 'weights', 'image_size', 'model_args', 'rank')
    }
    fit(task(**arguments), tmp_path, folder, fast_dev_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ['delta.safetensors']


def test_downstream_keeps_the_best_in_validation_and_the_last(folder, tmp_path):
    torch.manual_seed(0)
    task = ExploraClassificationTask(num_classes=2, **VIT)
    trainer = fit(task, tmp_path, folder, max_epochs=2, max_steps=-1)
    checkpoint = trainer.checkpoint_callback
    assert (checkpoint.monitor, checkpoint.mode) == ('val_OverallAccuracy', 'max')
    assert step_of(tmp_path / 'last.ckpt') == 8
    assert (tmp_path / 'best.ckpt').exists()
    # A second stage does not forget it.
    best = checkpoint.best_model_path
    data = ImageFolderDataModule(folder, batch_size=8)
    trainer.validate(task, data, verbose=False)
    assert trainer.checkpoint_callback.best_model_path == best


def test_downstream_without_validation_keeps_the_smallest_loss(folder, tmp_path):
    torch.manual_seed(0)
    task = ExploraClassificationTask(num_classes=2, **VIT)
    trainer = fit(task, tmp_path, folder, max_steps=4, limit_val_batches=0)
    assert trainer.checkpoint_callback.monitor == 'train_loss'
    assert step_of(tmp_path / 'last.ckpt') == 4
    assert (tmp_path / 'best.ckpt').exists()
