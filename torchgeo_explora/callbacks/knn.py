"""Nearest neighbours on a labelled split, while training runs without labels."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from torchgeo_explora.functional import knn_vote
from torchgeo_explora.models.backbones.tokens import Pooling


class OnlineKNN(Callback):
    """Weighted k-nearest-neighbour accuracy of the backbone to keep.

    The bank is the data module's training set, the queries are its validation set;
    their labels are used for nothing else. The accuracy is logged as `knn`, before the
    first step, then every *every_n_steps* and after the last step:
    `ModelCheckpoint(monitor='knn', mode='max', every_n_train_steps=...)` keeps the best
    delta. With `EarlyStopping('knn')` it is also measured at the end of an epoch in
    which it was not. Without class labels the callback is off, and says why. Continued
    pre-training can ruin features quickly: the callback warns if the accuracy falls
    well below the start.

    Args:
        every_n_steps: Optimizer steps between two evaluations; 0 turns the callback
            off.
        k: Number of neighbours that vote.
        bank: Largest number of training images used, evenly spaced.
        queries: Largest number of validation images used, evenly spaced.
        batch_size: Images embedded at once.
        tolerance: Fall of the accuracy below the start that causes a warning.
        pooling: What stands for an image: 'cls' for the class token, 'mean' for the
            mean patch token, 'both' for one after the other; if None, what the method
            trains: 'cls' for DINO, 'mean' for MAE. The delta records it.

    Attributes:
        history: Accuracy by optimizer step.
        off: Why there is nothing to evaluate, known after `setup`; None if there is.
    """

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
        self.every_n_steps = every_n_steps
        self.k = k
        self.bank = bank
        self.queries = queries
        self.batch_size = batch_size
        self.tolerance = tolerance
        self.pooling = pooling
        self.history: dict[int, float] = {}
        self.off: str | None = None
        self._epoch_start = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out whether there are labels."""
        if stage == 'fit':
            self.off = self._reason_to_be_off(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the start.

        Raises:
            ValueError: If training is to stop by kNN, and kNN is off.
        """
        if self.off and self._stops_early(trainer):
            raise ValueError(
                f'EarlyStopping watches knn, and online kNN is off: {self.off}; give'
                ' *monitor* loss, or remove EarlyStopping'
            )
        if self.off:
            rank_zero_info(f'online kNN is off: {self.off}')
        elif trainer.global_step not in self.history:
            accuracy = self._evaluate(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics({'knn': accuracy}, step=trainer.global_step)

    def due(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether this optimizer step is one to evaluate after."""
        step, every = trainer.global_step, self.every_n_steps
        if every and step % every == 0:
            return True
        return step == getattr(pl_module, 'planned_steps', None)

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
        if self.off or step in self.history or not self.due(trainer, pl_module):
            return
        self._log(trainer, pl_module)

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Note the step."""
        self._epoch_start = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate for `EarlyStopping`, if nothing in this epoch was evaluated."""
        # Lightning keeps the value of an earlier epoch.
        known = max(self.history, default=0) > self._epoch_start
        known = known and 'knn' in trainer.callback_metrics
        if self._stops_early(trainer) and not known:
            self._log(trainer, pl_module)

    @staticmethod
    def _stops_early(trainer: Trainer) -> bool:
        """Return whether the accuracy decides when training stops."""
        return any(each.monitor == 'knn' for each in trainer.early_stopping_callbacks)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, log it, and warn if the features got worse."""
        step, accuracy = trainer.global_step, self._evaluate(trainer, pl_module)
        pl_module.log('knn', accuracy, prog_bar=True)
        start = next(iter(self.history.values()))
        if accuracy < start - self.tolerance:
            rank_zero_warn(
                f'kNN fell from {start:.3f} to {accuracy:.3f} at step {step}: the'
                ' features are getting worse; lower base_lr, or stop and keep the best'
                ' delta'
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the accuracy before and after."""
        if len(self.history) > 1:
            values = list(self.history.values())
            best = max(self.history, key=lambda step: self.history[step])
            rank_zero_info(
                f'kNN before {values[0]:.4f} after {values[-1]:.4f}'
                f' (best {self.history[best]:.4f} at step {best})'
            )

    def _reason_to_be_off(self, trainer: Trainer) -> str | None:
        """Return why kNN cannot run or is not wanted; None if it can."""
        if not self.every_n_steps:
            return '*every_n_steps* is 0'
        datamodule = getattr(trainer, 'datamodule', None)
        for split in ('train', 'val'):
            dataset = getattr(datamodule, f'{split}_dataset', None)
            # Geospatial data sets are read by place, not by number.
            if dataset is None or not hasattr(dataset, '__len__') or not len(dataset):
                return f'there is no {split} split'
            try:
                label = dataset[0].get('label')
            # Whatever is wrong with the data, training itself will tell.
            except Exception as error:  # noqa: BLE001
                reason = f'{type(error).__name__}: {error}'
                return f'the {split} split cannot be read by number ({reason})'
            if not _is_class(label):
                return f'the {split} split has no class labels'
        return None

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Return the accuracy now, and remember it."""
        # Compiled blocks would be compiled again for these views and batches.
        with torch.compiler.set_stance('force_eager'):
            bank, labels = self._embed(trainer, 'train', self.bank, pl_module)
            queries, truth = self._embed(trainer, 'val', self.queries, pl_module)
        classes = int(torch.cat([labels, truth]).max()) + 1
        votes = knn_vote(bank, labels, queries, min(self.k, len(bank)), classes)
        accuracy = (votes.argmax(-1) == truth).float().mean().item()
        self.history[trainer.global_step] = accuracy
        return accuracy

    def _embed(
        self, trainer: Trainer, split: str, most: int, pl_module: LightningModule
    ) -> tuple[Tensor, Tensor]:
        """Return L2-normalised embeddings (N, D) and labels (N,) of a split."""
        # A task of your own need not know of pooling.
        chosen = {'pooling': self.pooling} if self.pooling else {}
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset: Dataset[Any] = getattr(datamodule, f'{split}_dataset')
        size = len(dataset)  # type: ignore[arg-type]
        if size > most:
            # Evenly spaced, since images are often sorted by class.
            dataset = Subset(dataset, torch.linspace(0, size - 1, most).long().tolist())
        loader = DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=getattr(datamodule, 'num_workers', 0),
            collate_fn=getattr(datamodule, 'collate_fn', None),
        )
        features, labels = [], []
        for batch in loader:
            if trainer.received_sigterm:
                raise SIGTERMException
            # A backbone may take more than the image, such as its date.
            batch = {
                name: value.to(pl_module.device)
                for name, value in batch.items()
                if isinstance(value, Tensor)
            }
            features.append(pl_module.embed(batch, **chosen))  # type: ignore[operator]
            labels.append(batch['label'].long())
        embeddings = torch.nn.functional.normalize(torch.cat(features), dim=-1)
        return embeddings, torch.cat(labels).to(embeddings.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the history."""
        return {'history': dict(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = {int(k): float(v) for k, v in state_dict['history'].items()}


def _is_class(label: Any) -> bool:
    """Return whether a label is the number of a class, a single integer from 0."""
    try:
        value = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        return False
    if value.ndim or value.dtype == torch.bool or value.dtype.is_floating_point:
        return False
    return bool(value >= 0)
