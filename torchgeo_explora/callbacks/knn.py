"""Nearest neighbours on a labelled split, while training runs without labels."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from torchgeo_explora.functional import knn_vote


class OnlineKNN(Callback):
    """Weighted k-nearest-neighbour accuracy of the backbone to keep.

    The bank is the data module's training set, the queries are its validation set;
    their labels are used for nothing else. Logged as `knn`, before the first step and
    then every *every_n_steps*: `ModelCheckpoint(monitor='knn', mode='max',
    every_n_train_steps=...)` keeps the best delta. Where there are no labels it is
    off, and says so. Continued pre-training can ruin features quickly: a fall well
    below the start is reported.

    Args:
        every_n_steps: Optimizer steps between two evaluations.
        k: Neighbours that vote.
        bank: Largest number of training images used, evenly spaced.
        queries: Largest number of validation images used, evenly spaced.
        batch_size: Images embedded at once.
        tolerance: Fall below the start, in accuracy, that is reported.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        k: int = 10,
        bank: int = 10_000,
        queries: int = 5_000,
        batch_size: int = 128,
        tolerance: float = 0.05,
    ) -> None:
        """Keep the settings."""
        self.every_n_steps = every_n_steps
        self.k = k
        self.bank = bank
        self.queries = queries
        self.batch_size = batch_size
        self.tolerance = tolerance
        #: Accuracy by optimizer step.
        self.history: dict[int, float] = {}
        self._on = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the start."""
        missing = self._missing_labels(trainer)
        self._on = missing is None
        if missing:
            rank_zero_info(
                f'online kNN is off: {missing}; a checkpoint that monitors it keeps the'
                ' last delta only'
            )
        elif trainer.global_step not in self.history:
            accuracy = self._evaluate(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics({'knn': accuracy}, step=trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Evaluate when it is due."""
        step = trainer.global_step
        last = step == getattr(pl_module, 'planned_steps', None)
        due = step % self.every_n_steps == 0 or last
        if self._on and due and step not in self.history:
            accuracy = self._evaluate(trainer, pl_module)
            pl_module.log('knn', accuracy, prog_bar=True)
            start = next(iter(self.history.values()))
            if accuracy < start - self.tolerance:
                rank_zero_warn(
                    f'kNN fell from {start:.3f} to {accuracy:.3f} at step {step}: the'
                    ' features are getting worse; lower base_lr, or stop and keep the'
                    ' best delta'
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print before and after."""
        if len(self.history) > 1:
            values = list(self.history.values())
            best = max(self.history, key=lambda step: self.history[step])
            rank_zero_info(
                f'kNN before {values[0]:.4f} after {values[-1]:.4f}'
                f' (best {self.history[best]:.4f} at step {best})'
            )

    def _missing_labels(self, trainer: Trainer) -> str | None:
        """Return why kNN cannot run, or None."""
        datamodule = getattr(trainer, 'datamodule', None)
        for split in ('train', 'val'):
            dataset = getattr(datamodule, f'{split}_dataset', None)
            # Geospatial data sets are read by place, not by number.
            if dataset is None or not hasattr(dataset, '__len__') or not len(dataset):
                return f'there is no {split} split'
            try:
                label = dataset[0].get('label')
            except (KeyError, TypeError, AttributeError, IndexError):
                return f'the {split} split cannot be read by number'
            if label is None or torch.as_tensor(label).ndim != 0:
                return f'the {split} split has no class labels'
        return None

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Return the accuracy now, and remember it."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        bank, labels = self._embed(datamodule, 'train', self.bank, pl_module)
        queries, truth = self._embed(datamodule, 'val', self.queries, pl_module)
        classes = int(torch.cat([labels, truth]).max()) + 1
        votes = knn_vote(bank, labels, queries, min(self.k, len(bank)), classes)
        accuracy = (votes.argmax(-1) == truth).float().mean().item()
        self.history[trainer.global_step] = accuracy
        return accuracy

    def _embed(
        self, datamodule: Any, split: str, most: int, pl_module: LightningModule
    ) -> tuple[Tensor, Tensor]:
        """Return L2-normalised embeddings (N, D) and labels (N,) of a split."""
        dataset: Dataset[Any] = getattr(datamodule, f'{split}_dataset')
        size = len(dataset)  # type: ignore[arg-type]
        if size > most:
            # Evenly spaced, since images are often sorted by class.
            dataset = Subset(dataset, torch.linspace(0, size - 1, most).long().tolist())
        loader = DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=datamodule.num_workers,
            collate_fn=datamodule.collate_fn,
        )
        features, labels = [], []
        for batch in loader:
            # A backbone may know more of an image, such as its date.
            batch = {
                name: value.to(pl_module.device)
                for name, value in batch.items()
                if isinstance(value, Tensor)
            }
            features.append(pl_module.embed(batch))  # type: ignore[operator]
            labels.append(batch['label'])
        embeddings = torch.nn.functional.normalize(torch.cat(features), dim=-1)
        return embeddings, torch.cat(labels).to(embeddings.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the history."""
        return {'history': dict(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = {int(k): float(v) for k, v in state_dict['history'].items()}
