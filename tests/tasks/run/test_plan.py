"""What a run plans is what it does."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from lightning.pytorch.plugins.precision import MixedPrecision

from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.run.plan import layout, require_layout, require_steady

pytestmark = pytest.mark.filterwarnings('ignore')


class Steps(Callback):
    """Count the images of each optimizer step."""

    def __init__(self):
        self.images, self.steps = 0, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images += len(batch['image'])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(self.images)
        self.images = 0


def make(place, *callbacks, **arguments):
    return Trainer(
        **{
            'accelerator': 'cpu',
            'max_epochs': 2,
            'logger': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'enable_checkpointing': False,
            'default_root_dir': place,
            'callbacks': [*callbacks],
            **arguments,
        }
    )


def new(tiny, **arguments):
    seed_everything(0)
    return ExploraDinoTask(**(tiny | arguments))


def data(folder, size=4):
    return ImageFolderDataModule(folder, batch_size=size)


@pytest.mark.parametrize(
    ('accumulated', 'expected', 'text'),
    [
        (32, [32] * 2, 'so 8 are accumulated for an optimizer step, not 32'),
        (3, [12] * 4, 'the last 2 of each epoch are left out'),
        (4, [16] * 4, ''),
    ],
)
def test_every_step_has_the_images_that_the_summary_tells(
    accumulated, expected, text, tiny, folder, tmp_path, caplog
):
    """32 images in 8 batches: short epochs, a remainder, and neither."""
    caplog.set_level('INFO')
    seen, task = Steps(), new(tiny)
    trainer = make(tmp_path, seen, accumulate_grad_batches=accumulated)
    trainer.fit(task, data(folder))
    assert seen.steps == expected
    assert (task.planned_steps, task.effective_batch) == (len(expected), expected[0])
    assert f'effective batch {expected[0]}' in caplog.text
    assert task.lr == pytest.approx(0.05 * (expected[0] / 1024) ** 0.5)
    assert text in caplog.text
    # The trainer is as it was given.
    assert trainer.accumulate_grad_batches == accumulated
    assert trainer.limit_train_batches == 1.0
    # A checkpoint that is written afterwards still tells what was done.
    trainer.save_checkpoint(tmp_path / 'x.ckpt')
    layout = torch.load(tmp_path / 'x.ckpt', weights_only=True)['layout']
    assert layout == {'batch': 4, 'accumulated': expected[0] // 4, 'devices': 1}


@pytest.mark.parametrize(
    ('callback', 'message'),
    [
        (GradientAccumulationScheduler({0: 1, 1: 2}), 'accumulate_grad_batches'),
        (BatchSizeFinder(), 'set batch_size'),
        (LearningRateFinder(), 'base_lr'),
        (EMAWeightAveraging(), 'cannot be resumed'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks_that_contradict_the_plan_are_refused(
    callback, message, tiny, folder, tmp_path
):
    with pytest.raises(ValueError, match=f'{type(callback).__name__} .*{message}'):
        make(tmp_path, callback).fit(new(tiny), data(folder))


def test_a_trial_of_lightnings_tuner_is_not_refused():
    """It looks for a batch size on runs that end early."""
    finder = BatchSizeFinder()
    trainer = SimpleNamespace(callbacks=[finder])
    with pytest.raises(ValueError, match='after the run is planned'):
        require_steady(trainer)
    finder._early_exit = True
    assert require_steady(trainer) is None


def test_layout_counts_the_images_of_all_devices():
    loader = SimpleNamespace(batch_size=4)
    trainer = SimpleNamespace(
        world_size=2, accumulate_grad_batches=3, train_dataloader=loader
    )
    here = {'batch': 8, 'accumulated': 3, 'devices': 2}
    assert layout(trainer) == here
    # The same images on other devices.
    require_layout({**here, 'devices': 1}, here)
    for name in ('batch', 'accumulated'):
        with pytest.raises(ValueError, match='was written with 8 images'):
            require_layout({**here, name: 5}, here)


def test_run_without_batches_is_refused(tiny, folder, tmp_path):
    with pytest.raises(ValueError, match='limit_train_batches is 0'):
        make(tmp_path, limit_train_batches=0).fit(new(tiny), data(folder))


@pytest.mark.parametrize(
    ('size', 'accumulated', 'fits'), [(4, 2, True), (8, 1, False), (4, 1, False)]
)
def test_resuming_with_another_batch_is_refused(
    size, accumulated, fits, tiny, folder, tmp_path
):
    trainer = make(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(new(tiny), data(folder))
    path = tmp_path / 'x.ckpt'
    trainer.save_checkpoint(path)
    trainer = make(tmp_path, accumulate_grad_batches=accumulated)
    if fits:
        trainer.fit(new(tiny), data(folder, size), ckpt_path=path)
        assert trainer.global_step == 8
    else:
        with pytest.raises(ValueError, match='with 4 images in a batch over 1 devices'):
            trainer.fit(new(tiny), data(folder, size), ckpt_path=path)


def test_second_fit_of_a_task_is_as_long_as_the_first(tiny, folder, tmp_path):
    task = new(tiny)
    for _ in range(2):
        seen = Steps()
        make(tmp_path, seen, max_epochs=1, limit_train_batches=5).fit(
            task, data(folder)
        )
        assert seen.steps == [4] * 5


def test_left_out_step_of_float16_moves_no_teacher(tiny, folder, tmp_path):
    """The first scale overflows; steps after it are taken."""
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**120, backoff_factor=2.0**-110)
    plugin = MixedPrecision('16-mixed', 'cpu', scaler)
    task, moved, after = new(tiny), [], []
    step = task.objective.after_step
    task.objective.after_step = lambda progress: (
        moved.append(progress) or step(progress)
    )

    class Scale(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            after.append(scaler.get_scale())

    trainer = make(tmp_path, Scale(), max_steps=3, plugins=[plugin])
    trainer.fit(task, data(folder))
    assert after[0] < 2.0**120
    taken = [now >= before for before, now in pairwise([2.0**120, *after])]
    assert len(moved) == sum(taken)
    assert 0 < len(moved) < 3
