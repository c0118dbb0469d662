"""Callbacks that tasks bring: which, and which of them the user replaces."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar

from tests.callbacks.test_quality import Data, Model
from torchgeo_explora.callbacks import (
    Cost,
    Curves,
    EmbeddingPictures,
    LabelFreeQuality,
    OnlineKNN,
    Pictures,
    Reconstructions,
    StepProgressBar,
)
from torchgeo_explora.callbacks.defaults import (
    downstream_callbacks,
    pretraining_callbacks,
)

BROUGHT = (
    *(OnlineKNN, LabelFreeQuality, EmbeddingPictures, Pictures, Curves, Cost),
    StepProgressBar,
    'checkpoint',
)

pytestmark = pytest.mark.filterwarnings('ignore')


def make(place, **arguments):
    return Trainer(
        **{
            'accelerator': 'cpu',
            'logger': False,
            'enable_model_summary': False,
            'default_root_dir': place,
            **arguments,
        }
    )


def kinds(callbacks):
    return {
        'checkpoint' if isinstance(callback, ModelCheckpoint) else type(callback)
        for callback in callbacks
    }


def test_pretraining_brings_all_and_lightnings_own_are_gone(tmp_path):
    trainer = make(tmp_path)
    brought = pretraining_callbacks(trainer)
    assert kinds(brought) == set(BROUGHT)
    assert trainer.callbacks == []
    (checkpoint,) = (c for c in brought if isinstance(c, ModelCheckpoint))
    assert checkpoint.dirpath == str(tmp_path)
    assert (checkpoint.monitor, checkpoint.mode) == ('knn', 'max')


def test_masked_pretraining_draws_reconstructions_with_each_evaluation(tmp_path):
    trainer = make(tmp_path, callbacks=[OnlineKNN(every_n_steps=30)])
    brought = pretraining_callbacks(trainer, masked=True)
    assert Pictures not in kinds(brought)
    (drawn,) = (c for c in brought if isinstance(c, Reconstructions))
    assert drawn.every_n_steps == 30
    (quality,) = (c for c in brought if isinstance(c, LabelFreeQuality))
    assert quality.every_n_steps == 30


@pytest.mark.parametrize(
    'own',
    [*BROUGHT[:-1], TQDMProgressBar],
)
def test_a_callback_of_the_user_replaces_the_one_of_its_kind(own, tmp_path):
    given = own()
    trainer = make(tmp_path, callbacks=[given])
    brought = pretraining_callbacks(trainer)
    assert given in trainer.callbacks
    missing = StepProgressBar if own is TQDMProgressBar else own
    everything = set(BROUGHT)
    assert kinds(brought) == everything - {missing}


@pytest.mark.parametrize(
    'bring', [pretraining_callbacks, lambda t: downstream_callbacks(t, 'x', 'min')]
)
def test_checkpoints_of_the_user_replace_ours(bring, tmp_path):
    given = [
        ModelCheckpoint(tmp_path, every_n_train_steps=2),
        ModelCheckpoint(tmp_path, monitor='loss'),
    ]
    trainer = make(tmp_path, callbacks=list(given))
    assert 'checkpoint' not in kinds(bring(trainer))
    assert [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)] == given


@pytest.mark.parametrize(
    ('arguments', 'missing'),
    [
        ({'enable_checkpointing': False}, {'checkpoint'}),
        ({'enable_progress_bar': False}, {StepProgressBar}),
        ({'fast_dev_run': True}, set(BROUGHT) - {StepProgressBar}),
    ],
)
def test_what_the_trainer_turns_off_is_not_brought(arguments, missing, tmp_path):
    everything = set(BROUGHT)
    brought = pretraining_callbacks(make(tmp_path, **arguments))
    assert kinds(brought) == everything - missing
    brought = downstream_callbacks(make(tmp_path, **arguments), 'val_loss', 'min')
    assert kinds(brought) == {'checkpoint'} - missing


def test_barebones_runs_get_nothing(tmp_path):
    trainer = Trainer(accelerator='cpu', barebones=True, default_root_dir=tmp_path)
    assert pretraining_callbacks(trainer) == []
    assert downstream_callbacks(trainer, 'val_loss', 'min') == []


def test_what_was_brought_before_stays(tmp_path):
    """A trainer that fits and then tests asks twice."""
    trainer = make(tmp_path)
    trainer.callbacks = pretraining_callbacks(trainer)
    assert pretraining_callbacks(trainer) == []
    trainer = make(tmp_path)
    trainer.callbacks = downstream_callbacks(trainer, 'val_loss', 'min')
    assert downstream_callbacks(trainer, 'val_loss', 'min') == []


def test_a_run_without_online_knn_can_be_resumed(tmp_path, monkeypatch):
    """It has checkpoints on its way, not only one at its end."""
    monkeypatch.setattr('torchgeo_explora.callbacks.defaults._STEPS', 2)
    trainer = make(
        tmp_path,
        max_steps=5,
        enable_progress_bar=False,
        callbacks=[OnlineKNN(every_n_steps=0)],
    )
    (checkpoint,) = (
        c for c in pretraining_callbacks(trainer) if isinstance(c, ModelCheckpoint)
    )
    trainer.callbacks.append(checkpoint)
    saved = []

    def save(path, *arguments, **options):
        saved.append(trainer.global_step)

    monkeypatch.setattr(trainer, 'save_checkpoint', save)

    class Falling(Model):
        def training_step(self, batch, batch_idx):
            self.log('loss', 1 / (1 + self.global_step))
            return super().training_step(batch, batch_idx)

    trainer.fit(Falling(), Data())
    assert {*saved} == {2, 4, 5}
