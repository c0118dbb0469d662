"""A picture of a run's curves."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from torchgeo_explora.callbacks.figures import save_figure
from torchgeo_explora.callbacks.knn import OnlineKNN


class Curves(Callback):
    """Draw metrics over optimizer steps into `curves.png` at the end of a run.

    The picture also goes to the loggers that take figures. The curve of `knn` is the
    history of an `OnlineKNN`, if the trainer has one.

    Args:
        folder: Where to write; the trainer's root folder if None.
        metrics: Names as logged, with a panel each; those never logged are left out.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        metrics: tuple[str, ...] = ('knn', 'loss', 'train/feature_std', 'lr'),
    ) -> None:
        """Start with empty curves."""
        self.folder = folder
        self.metrics = metrics
        self.points: dict[str, dict[int, float]] = {name: {} for name in metrics}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the values that were logged in this step."""
        step = trainer.global_step
        for name in self.metrics:
            value = trainer.logged_metrics.get(name, trainer.callback_metrics.get(name))
            # Reading a value waits for the device: once per optimizer step.
            if value is not None and step not in self.points[name]:
                self.points[name][step] = float(value)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves."""
        points = dict(self.points)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            # Evaluated at intervals: the last value would be repeated in between.
            if isinstance(callback, OnlineKNN) and 'knn' in points:
                points['knn'] = callback.history
        points = {name: curve for name, curve in points.items() if curve}
        if not points:
            return
        figure = Figure(figsize=(4 * len(points), 3), layout='constrained')
        panels = figure.subplots(1, len(points), squeeze=False)[0]
        for axes, (name, curve) in zip(panels, points.items(), strict=True):
            axes.plot(list(curve), list(curve.values()), marker='.' * (len(curve) < 50))
            axes.set_xlabel('optimizer step')
            axes.set_title(name)
            axes.grid(alpha=0.3)
        save_figure(figure, 'curves', trainer, self.folder)

    def state_dict(self) -> dict[str, Any]:
        """Return the curves so far."""
        return {'points': {name: dict(curve) for name, curve in self.points.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the curves."""
        self.points |= state_dict['points']
