"""Callbacks that tasks add unless the user has chosen others."""

from typing import Any
from weakref import WeakSet

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.utilities.imports import _RICH_AVAILABLE

from torchgeo_explora.callbacks.cost import Cost
from torchgeo_explora.callbacks.curves import Curves
from torchgeo_explora.callbacks.embedding_pictures import EmbeddingPictures
from torchgeo_explora.callbacks.knn import OnlineKNN
from torchgeo_explora.callbacks.pictures import Pictures
from torchgeo_explora.callbacks.progress import StepProgressBar
from torchgeo_explora.callbacks.quality import LabelFreeQuality
from torchgeo_explora.callbacks.reconstructions import Reconstructions


def pretraining_callbacks(trainer: Trainer, masked: bool = False) -> list[Callback]:
    """Return the callbacks that a pre-training task adds in `configure_callbacks`.

    They are online kNN, quality without labels, pictures, curves, the cost, the best
    and the last checkpoint in the trainer's root folder, and a progress bar of
    optimizer steps. A callback given by the user replaces the one of its kind.
    Lightning's own checkpoint and progress bar are removed from the trainer in favour
    of these; a user's bar or checkpoint without any argument cannot be distinguished
    from them.

    Nothing is written with `fast_dev_run`; `barebones`, `enable_checkpointing=False`
    and `enable_progress_bar=False` are obeyed.

    Args:
        trainer: The trainer of the task.
        masked: Whether the task reconstructs masked images, which are then drawn.
    """
    if trainer.barebones:
        return []
    callbacks: list[Callback] = []
    if not _is_trial(trainer):
        knn = _given(trainer, OnlineKNN) or OnlineKNN()
        quality = _given(trainer, LabelFreeQuality) or LabelFreeQuality(
            every_n_steps=knn.every_n_steps
        )
        wanted: list[Callback] = [knn, quality, EmbeddingPictures(), Curves()]
        wanted.append(Cost())
        if masked:
            wanted.insert(2, Reconstructions(every_n_steps=knn.every_n_steps or None))
        else:
            wanted.insert(2, Pictures())
        callbacks += [c for c in wanted if _given(trainer, type(c)) is None]
        if _take_away(trainer, Checkpoint, ModelCheckpoint):
            callbacks.append(_BestByKNN(knn, quality, trainer.default_root_dir))
    bar = RichProgressBar if _RICH_AVAILABLE else TQDMProgressBar
    if _take_away(trainer, ProgressBar, bar):
        callbacks.append(StepProgressBar())
    return callbacks


def downstream_callbacks(trainer: Trainer, monitor: str, mode: str) -> list[Callback]:
    """Return the callbacks that a downstream task adds in `configure_callbacks`.

    They keep the best and the last checkpoint in the trainer's root folder, under the
    conditions of `pretraining_callbacks`. Without validation, the training loss decides
    which is best.

    Args:
        trainer: The trainer of the task.
        monitor: Validation metric that decides.
        mode: 'min' or 'max'.
    """
    if _is_trial(trainer) or not _take_away(trainer, Checkpoint, ModelCheckpoint):
        return []
    folder = trainer.default_root_dir
    return [
        _BestInValidation(folder, monitor, mode),
        # `save_last` of the other one would only keep the last of the best.
        ModelCheckpoint(folder, 'last', enable_version_counter=False),
    ]


#: Writers that tasks have added to their trainers.
_added: WeakSet[Callback] = WeakSet()


def prediction_writers(trainer: Trainer, kind: type[Callback]) -> list[Callback]:
    """Return a writer of predictions, or none if the user gave one of its kind.

    A trainer keeps the callbacks of its tasks. A writer that an earlier prediction
    added is removed, because it would write the predictions of this one, too.

    Args:
        trainer: The trainer of the task; its list of callbacks is changed in place.
        kind: Class of the writer; it is created without arguments.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [callback for callback in callbacks if callback not in _added]
    # Lightning lets a task's callback replace the user's of the same type.
    if _given(trainer, kind) is not None:
        return []
    writer = kind()
    _added.add(writer)
    return [writer]


#: Optimizer steps between two checkpoints of a run without online kNN.
_STEPS = 500


class _BestByKNN(ModelCheckpoint):
    """Keep the best and the last of the checkpoints at the steps of online kNN.

    Without labels, RankMe decides at the same steps, or every 500 steps if kNN is off:
    it chose the checkpoints of a run nearly as kNN does (`docs/quality.md`). If RankMe
    is not measured at all of these steps, the loss decides.

    Args:
        knn: The callback that measures kNN; it runs before this one.
        quality: The callback that measures without labels; it runs before this one.
        folder: Folder of the checkpoints.
    """

    def __init__(self, knn: OnlineKNN, quality: LabelFreeQuality, folder: str) -> None:
        """Configure Lightning's checkpoint."""
        super().__init__(
            folder,
            'best',
            'knn',
            mode='max',
            save_last=True,
            every_n_train_steps=1,
            enable_version_counter=False,
        )
        self.knn = knn
        self.quality = quality

    @property
    def state_key(self) -> str:
        """The same name in checkpoints, with labels and without."""
        return 'BestByKNN'

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the metric that decides if there are no labels."""
        if stage == 'fit' and self.knn.off:
            every = self.knn.every_n_steps or _STEPS
            own = self.quality.every_n_steps
            if own and self.quality.off is None and every % own == 0:
                _decide_by(self, 'quality/rankme', 'max')
            else:
                _decide_by(self, 'loss', 'min')
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when kNN is due."""
        every = self.knn.every_n_steps or _STEPS
        if trainer.global_step % every == 0 or self.knn.due(trainer, pl_module):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class _BestInValidation(ModelCheckpoint):
    """Keep the checkpoint that was best in validation.

    Args:
        folder: Folder of the checkpoints.
        monitor: Metric that decides, or `train_loss` if there is no validation.
        mode: 'min' or 'max'.
    """

    def __init__(self, folder: str, monitor: str, mode: str) -> None:
        """Configure Lightning's checkpoint."""
        super().__init__(
            folder, 'best', monitor, mode=mode, enable_version_counter=False
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the training loss decide if there is no validation."""
        if stage == 'fit' and not trainer.enable_validation:
            _decide_by(self, 'train_loss', 'min')
        super().setup(trainer, pl_module, stage)


def _decide_by(checkpoint: ModelCheckpoint, monitor: str, mode: str) -> None:
    """Make a checkpoint callback keep the best by another metric."""
    checkpoint.monitor, checkpoint.mode = monitor, mode
    worst = torch.inf if mode == 'min' else -torch.inf
    checkpoint.kth_value = torch.tensor(worst)


def _is_trial(trainer: Trainer) -> bool:
    """Return whether a run is only a trial, which leaves no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _given[T: Callback](trainer: Trainer, kind: type[T]) -> T | None:
    """Return the first callback of a kind that the trainer has."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, kind)), None)


def _take_away(trainer: Trainer, kind: type[Callback], default: type[Callback]) -> bool:
    """Remove Lightning's own callback of a kind from a trainer.

    Args:
        trainer: Its list of callbacks is changed in place.
        kind: Kind of the callback.
        default: Class that Lightning adds for it, without arguments.

    Returns:
        Whether another one may take its place: Lightning's own was there, and no other.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found = [c for c in callbacks if isinstance(c, kind)]
    if len(found) != 1 or type(found[0]) is not default:
        return False
    if vars(found[0]) != vars(default()):
        return False
    callbacks.remove(found[0])
    return True
