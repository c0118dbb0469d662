"""Measure the backbone that is kept, at intervals during training."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from torchgeo_explora.functional.spacing import evenly_spaced


class Evaluation(Callback):
    """Measure before the first step, every *every_n_steps* steps, and after the last.

    A subclass says what it measures (`measure`), under which names it is logged
    (`metrics`), and why it cannot measure (`reason_to_be_off`).

    Args:
        every_n_steps: Optimizer steps between two evaluations; 0 turns the callback
            off.
        batch_size: Images embedded at once.

    Attributes:
        history: What was measured, by optimizer step.
        off: Why nothing can be measured, known after `setup`; None if it can.
    """

    #: Name shown to the user.
    title: str
    #: Names of its metrics, which `EarlyStopping` may watch.
    monitors: tuple[str, ...] = ()

    def __init__(self, every_n_steps: int, batch_size: int) -> None:
        """Keep the settings."""
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.history: dict[int, Any] = {}
        self.off: str | None = None
        self._epoch_start = 0

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return a measurement of the backbone as it is now."""

    @abstractmethod
    def metrics(self, measured: Any) -> dict[str, float]:
        """Return a measurement as metrics to log, by name."""

    @abstractmethod
    def reason_to_be_off(self, trainer: Trainer) -> str | None:
        """Return why nothing can be measured; None if it can."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out whether there is something to measure."""
        if stage == 'fit':
            if not trainer.global_step:
                # The history of another run; a checkpoint is restored after this.
                self.history = {}
            off = None if self.every_n_steps else '*every_n_steps* is 0'
            self.off = off or self.reason_to_be_off(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure before the first step; a resumed run has this already.

        Raises:
            ValueError: If `EarlyStopping` watches a metric that is not measured.
        """
        if self.off and (watched := self._watched(trainer)):
            raise ValueError(
                f'EarlyStopping watches {watched}, but {self.title} is off: {self.off};'
                ' set *monitor* to loss, or remove EarlyStopping'
            )
        if self.off:
            rank_zero_info(f'{self.title} is off: {self.off}')
        elif not self.history:
            values = self.metrics(self._remember(trainer, pl_module))
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Note the step."""
        self._epoch_start = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure for `EarlyStopping`, if nothing was measured in this epoch."""
        watched = self._watched(trainer)
        # Lightning keeps the value of an earlier epoch.
        known = max(self.history, default=0) > self._epoch_start
        if watched and not (known and watched in trainer.callback_metrics):
            self.log_now(trainer, pl_module)

    def _watched(self, trainer: Trainer) -> str | None:
        """Return which of its metrics `EarlyStopping` watches, if any."""
        names = [each.monitor for each in trainer.early_stopping_callbacks]
        return next((name for name in names if name in self.monitors), None)

    def due(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether this optimizer step is one to measure after."""
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
        """Measure when it is due."""
        step = trainer.global_step
        if self.off or step in self.history or not self.due(trainer, pl_module):
            return
        self.log_now(trainer, pl_module)

    def log_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, and log the result."""
        for name, value in self.metrics(self._remember(trainer, pl_module)).items():
            pl_module.log(name, value, prog_bar=name == 'knn')

    def _remember(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        # Compiled blocks would be compiled again for these views and batches.
        with torch.compiler.set_stance('force_eager'):
            measured = self.measure(trainer, pl_module)
        # Random transforms, and a GPU's rounding, differ from process to process.
        measured = trainer.strategy.broadcast(measured)
        self.history[trainer.global_step] = measured
        return measured

    @property
    def ends(self) -> tuple[Any, Any]:
        """The first and the last measurement."""
        values = list(self.history.values())
        return values[0], values[-1]

    def state_dict(self) -> dict[str, Any]:
        """Return the history."""
        return {'history': dict(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = {int(k): v for k, v in state_dict['history'].items()}


def image_batches(
    trainer: Trainer, split: str, most: int, batch_size: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of up to *most* images of a split, evenly spaced, in order."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    dataset: Dataset[Any] = getattr(datamodule, f'{split}_dataset')
    size = len(dataset)  # type: ignore[arg-type]
    if size > most:
        dataset = Subset(dataset, evenly_spaced(size, most))
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=getattr(datamodule, 'num_workers', 0),
        collate_fn=getattr(datamodule, 'collate_fn', None),
    )
    for batch in loader:
        if trainer.received_sigterm:
            raise SIGTERMException
        # A backbone may take more than the image, such as its date.
        yield {
            name: value.to(device)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }


def lack_of_images(trainer: Trainer) -> str | None:
    """Return why the training images cannot be compared; None if they can."""
    sample = first_sample(trainer, 'train')
    if isinstance(sample, str):
        return sample
    if len(trainer.datamodule.train_dataset) < 2:  # type: ignore[attr-defined]
        return 'there is only one training image'
    return None


def first_sample(trainer: Trainer, split: str) -> dict[str, Any] | str:
    """Return the first sample of a split, or why there is none."""
    datamodule = getattr(trainer, 'datamodule', None)
    dataset = getattr(datamodule, f'{split}_dataset', None)
    if dataset is not None and not hasattr(dataset, '__len__'):
        return f'the {split} split can only be iterated over'
    # Geospatial data sets are read by place, not by number.
    if dataset is None or not len(dataset):
        return f'there is no {split} split'
    try:
        return dict(dataset[0])
    # Whatever is wrong with the data, training itself will report it.
    except Exception as error:  # noqa: BLE001
        reason = f'{type(error).__name__}: {error}'
        return f'the {split} split cannot be read by number ({reason})'
