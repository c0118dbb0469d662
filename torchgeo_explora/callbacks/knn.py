"""Nearest neighbours on a labelled split, while training runs without labels."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from torchgeo_explora.callbacks.evaluation import (
    Evaluation,
    first_sample,
    image_batches,
)
from torchgeo_explora.functional import knn_vote
from torchgeo_explora.models.backbones.tokens import Pooling


class OnlineKNN(Evaluation):
    """Weighted k-nearest-neighbour accuracy of the backbone that is kept.

    The bank is the data module's training set, the queries are its validation set;
    their labels are used for nothing else. The accuracy is logged as `knn`, before the
    first step, then every *every_n_steps* and after the last step:
    `ModelCheckpoint(monitor='knn', mode='max', every_n_train_steps=...)` keeps the best
    delta. With `EarlyStopping('knn')` it is also measured at the end of an epoch in
    which it has not been measured. Without class labels the callback is off, and says
    why. Continued pre-training can ruin features quickly: the callback warns if the
    accuracy falls well below the start.

    Args:
        every_n_steps: Optimizer steps between two evaluations; 0 turns the callback
            off.
        k: Number of neighbours that vote.
        bank: Largest number of training images used, evenly spaced.
        queries: Largest number of validation images used, evenly spaced.
        batch_size: Images embedded at once.
        tolerance: Drop of the accuracy below the start that causes a warning.
        pooling: How tokens become an embedding: 'cls' for the class token, 'mean' for
            the mean patch token, 'both' for the two concatenated; if None, what the
            method trains: 'cls' for DINO, 'mean' for MAE. The delta records it.

    Attributes:
        history: Accuracy by optimizer step.
        off: Why nothing can be evaluated, known after `setup`; None if it can.
    """

    title = 'online kNN'
    monitors = ('knn',)
    history: dict[int, float]

    def __init__(
        self,
        every_n_steps: int = 500,
        k: int = 10,
        bank: int = 10_000,
        queries: int = 5_000,
        batch_size: int = 128,
        tolerance: float = 0.05,
        pooling: Pooling | None = None,
    ) -> None:
        """Keep the settings."""
        super().__init__(every_n_steps, batch_size)
        self.k = k
        self.bank = bank
        self.queries = queries
        self.tolerance = tolerance
        self.pooling = pooling

    def log_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, log the result, and warn if the features got worse."""
        super().log_now(trainer, pl_module)
        start, accuracy = self.ends
        if accuracy < start - self.tolerance:
            rank_zero_warn(
                f'kNN fell from {start:.3f} to {accuracy:.3f} at step'
                f' {trainer.global_step}: the features are getting worse; lower'
                ' base_lr, or stop and keep the best delta'
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the accuracy before and after."""
        if len(self.history) > 1:
            first, last = self.ends
            best = max(self.history, key=lambda step: self.history[step])
            rank_zero_info(
                f'kNN before {first:.4f} after {last:.4f}'
                f' (best {self.history[best]:.4f} at step {best})'
            )

    def reason_to_be_off(self, trainer: Trainer) -> str | None:
        """Return why there are no labels to use; None if there are."""
        for split in ('train', 'val'):
            sample = first_sample(trainer, split)
            if isinstance(sample, str):
                return sample
            if not _is_class(sample.get('label')):
                return f'the {split} split has no class labels'
        return None

    def metrics(self, measured: float) -> dict[str, float]:
        """Return the accuracy under its name."""
        return {'knn': measured}

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Return the current accuracy."""
        bank, labels = self._embed(trainer, 'train', self.bank, pl_module)
        queries, truth = self._embed(trainer, 'val', self.queries, pl_module)
        classes = int(torch.cat([labels, truth]).max()) + 1
        votes = knn_vote(bank, labels, queries, min(self.k, len(bank)), classes)
        return (votes.argmax(-1) == truth).float().mean().item()

    def _embed(
        self, trainer: Trainer, split: str, most: int, pl_module: LightningModule
    ) -> tuple[Tensor, Tensor]:
        """Return L2-normalised embeddings (N, D) and labels (N,) of a split."""
        # A user's own task may not support pooling.
        chosen = {'pooling': self.pooling} if self.pooling else {}
        features, labels = [], []
        for batch in image_batches(
            trainer, split, most, self.batch_size, pl_module.device
        ):
            features.append(pl_module.embed(batch, **chosen))  # type: ignore[operator]
            labels.append(batch['label'].long())
        embeddings = torch.nn.functional.normalize(torch.cat(features), dim=-1)
        return embeddings, torch.cat(labels).to(embeddings.device)


def _is_class(label: Any) -> bool:
    """Return whether a label is the number of a class, a single integer from 0."""
    try:
        value = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        return False
    if value.ndim or value.dtype == torch.bool or value.dtype.is_floating_point:
        return False
    return bool(value >= 0)
