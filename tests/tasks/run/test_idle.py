"""How long the device waits between steps."""

import copy
import pickle
import time

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from torchgeo_explora.datamodules import SyntheticScenesDataModule
from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.run.idle import IdleClock


@pytest.fixture
def clock(monkeypatch):
    """A clock that reads 0, 1, 3, 6, 10, ... seconds."""
    times = (n * (n + 1) / 2 for n in range(100))
    monkeypatch.setattr(time, 'perf_counter', lambda: next(times))
    return IdleClock(torch.device('cpu'))


def test_share_is_the_wait_before_a_step_over_all_of_it(clock):
    clock.begin()  # nothing came before: not marked
    assert clock.end() is None  # at 0
    clock.begin()  # 1
    assert clock.end() is None  # 3
    clock.begin()  # 6
    assert clock.end() == pytest.approx(1 / 3)  # from 0 to 3, idle until 1
    clock.begin()  # 15
    assert clock.end() == pytest.approx(3 / 7)  # from 3 to 10, idle until 6


def test_a_copy_has_no_marks(clock):
    clock.end()
    assert copy.deepcopy(clock).marks == []
    assert pickle.loads(pickle.dumps(clock)).marks == []


@pytest.mark.parametrize('wait', [0.0, 3.0])
def test_task_logs_how_long_it_waited_for_data_and_how_many_images_it_saw(
    tmp_path, monkeypatch, wait
):
    """On a clock that stands still but while data is awaited and in a step."""
    now = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])

    class Slow(SyntheticScenesDataModule):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            if self.trainer.training:
                now[0] += wait
            return super().on_before_batch_transfer(batch, dataloader_idx)

    class Shares(Callback):
        def __init__(self):
            self.found, self.rates = [], []

        def on_before_backward(self, *_):
            now[0] += 1.0

        def on_train_batch_start(self, trainer, *_):
            if 'device_idle' in trainer.callback_metrics:
                self.found.append(float(trainer.callback_metrics['device_idle']))

        def on_train_batch_end(self, trainer, *_):
            self.rates.append(float(trainer.callback_metrics['images_per_second']))

    shares = Shares()
    task = ExploraDinoTask(
        'vit_tiny_patch16_224',
        weights=None,
        image_size=32,
        views={'local_views': 2},
        objective={'prototypes': 64, 'hidden_dim': 32, 'bottleneck_dim': 16},
        model_args={'embed_dim': 24, 'depth': 2, 'num_heads': 2},
        rank=2,
    )
    trainer = Trainer(
        accelerator='cpu',
        max_steps=6,
        callbacks=[shares],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, Slow(num_train=24, num_val=2, num_test=2, batch_size=4))
    # The first two steps only set the marks, and a value is read one step later.
    assert shares.found == pytest.approx([wait / (wait + 1)] * 3)
    assert shares.rates == pytest.approx([4 / (wait + 1)] * 6)
