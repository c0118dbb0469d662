"""A progress bar that counts optimizer steps."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import convert_inf


class StepProgressBar(TQDMProgressBar):
    """Show optimizer steps out of those planned, the time left and the logged metrics.

    Lightning's bars count the micro-batches of one epoch. This one counts what
    schedules and `max_steps` count, over the whole run; a resumed run starts where it
    stopped. Of the metrics that a task logs with `prog_bar=True`, `images_per_second`
    is shown as `images/s`.

    Args:
        refresh_rate: Optimizer steps between two updates; 0 shows no bar. In
            evaluation, the bar counts batches.
        process_position: Number of lines above the bar.
    """

    def __init__(self, refresh_rate: int = 1, process_position: int = 0) -> None:
        """Keep the settings."""
        super().__init__(refresh_rate, process_position)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, at the steps already done."""
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.unit = ' steps'
        bar.total = convert_inf(trainer.estimated_stepping_batches)
        # Steps of an earlier run say nothing about the speed of this one.
        bar.initial = bar.n = trainer.global_step
        bar.refresh()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Leave the bar as it is: it shows the whole run."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the step, if this micro-batch was the last of one."""
        bar, step = self.train_progress_bar, trainer.global_step
        if step > bar.n and self._should_update(step, bar.total or 0):
            bar.n = step
            # Refreshes the bar.
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, Any]:
        """Return the metrics shown after the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        rate = metrics.pop('images_per_second', None)
        return metrics if rate is None else {'images/s': rate, **metrics}
