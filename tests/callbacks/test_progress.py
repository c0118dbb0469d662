"""The progress bar: what it counts, and where a resumed run starts."""

import re

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from torchgeo_explora.callbacks import StepProgressBar

pytestmark = pytest.mark.filterwarnings('ignore')


class Model(LightningModule):
    """Logs what a pre-training task logs to the bar."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        self.log('loss', self.weight**2, prog_bar=True)
        self.log('images_per_second', 42.0, prog_bar=True)
        return self.weight**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(place, steps, checkpoint=None, **arguments):
    """Train on five micro-batches an epoch, two for each step."""
    trainer = Trainer(
        accelerator='cpu',
        max_steps=steps,
        accumulate_grad_batches=2,
        logger=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=place,
        **{'callbacks': StepProgressBar(), **arguments},
    )
    data = DataLoader(torch.arange(20.0), batch_size=4)
    trainer.fit(Model(), data, ckpt_path=checkpoint)
    return trainer


def counts(output):
    """Return (done, planned) of every state of the bar that was printed."""
    return [(int(a), int(b)) for a, b in re.findall(r'(\d+)/(\d+) \[', output)]


def test_bar_counts_optimizer_steps_of_the_whole_run(tmp_path, capsys):
    fit(tmp_path, steps=7)
    output = capsys.readouterr().out
    # Three steps an epoch, the last of them of one micro-batch.
    assert sorted(set(counts(output))) == [(step, 7) for step in range(8)]
    assert counts(output) == sorted(counts(output))
    last = output.splitlines()[-1]
    assert re.search(
        r'7/7 \[\d\d:\d\d<00:00, .* steps/s, images/s=42\.00?, loss=', last
    )
    assert 'images_per_second' not in output
    assert 'Epoch' not in output


def test_bar_of_a_resumed_run_starts_at_its_steps(tmp_path, capsys):
    trainer = fit(tmp_path, steps=4)
    path = tmp_path / 'four.ckpt'
    trainer.save_checkpoint(path)
    capsys.readouterr()
    resumed = fit(tmp_path, 6, path)
    shown = set(counts(capsys.readouterr().out)) - {(0, 0)}
    assert sorted(shown) == [(4, 6), (5, 6), (6, 6)]
    # The time left follows from the steps of this run.
    assert resumed.progress_bar_callback.train_progress_bar.initial == 4


def test_bar_is_updated_at_its_rate_and_at_the_end(tmp_path, capsys):
    fit(tmp_path, steps=7, callbacks=StepProgressBar(refresh_rate=3))
    assert {done for done, _ in counts(capsys.readouterr().out)} == {0, 3, 6, 7}


def test_bar_is_hidden_where_it_is_not_wanted(tmp_path, capsys):
    fit(tmp_path, steps=3, callbacks=StepProgressBar(refresh_rate=0))
    assert not counts(capsys.readouterr().out)
