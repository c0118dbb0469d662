"""Where the pictures of a run go."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from torchgeo_explora.writing import replacing


def panels(rows: int, columns: int) -> tuple[Figure, NDArray[np.object_]]:
    """Return a figure of pictures without ticks, and its axes (rows, columns)."""
    size = (1.3 * columns + 0.6, 1.3 * rows)
    figure = Figure(figsize=size, layout='constrained')
    grid: NDArray[np.object_] = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        assert isinstance(axes, Axes)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, grid


def keep(
    figure: Figure, name: str, trainer: Trainer, folder: str | Path | None = None
) -> None:
    """Write a figure to *folder*, and to TensorBoard where it is the logger.

    Args:
        figure: The picture.
        name: Of the file, without its ending, and in TensorBoard.
        trainer: Tells the loggers and the step.
        folder: The trainer's root folder if None.
    """
    path = Path(folder or trainer.default_root_dir) / f'{name}.png'
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format='png')
    rank_zero_info(f'{name}: {path}')
    for logger in trainer.loggers:
        add_figure = getattr(getattr(logger, 'experiment', None), 'add_figure', None)
        if add_figure is not None:
            add_figure(name, figure, global_step=trainer.global_step)
