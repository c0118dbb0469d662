"""What the pictures of a run show, and where they go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from torchgeo_explora.augment import band_indices
from torchgeo_explora.writing import replacing

_TRUE_COLOUR = ('B04', 'B03', 'B02')


def shown_channels(backbone: Any, bands: Sequence[int | str] | None) -> list[int]:
    """Return the three channels to show as red, green and blue.

    Args:
        backbone: Tells its channels, and its bands where they have names.
        bands: Indices, or names where the backbone has names. If None, the true colours
            among Sentinel-2's bands, else the first three; the first one in grey where
            there are fewer.

    Raises:
        ValueError: If there is no such band, or a name is given where it has none.
    """
    names: Any = getattr(backbone, 'bands', None)
    count: int = backbone.in_channels
    chosen = bands
    if chosen is None:
        known = names is not None and set(_TRUE_COLOUR) <= set(names)
        chosen = _TRUE_COLOUR if known else range(3) if count >= 3 else (0, 0, 0)
    wanted = [band for band in chosen if isinstance(band, str)]
    if wanted and names is None:
        raise ValueError(
            f'*bands* names {", ".join(wanted)}, but {type(backbone).__name__} has'
            ' no names for its channels: give their indices'
        )
    found = [
        band_indices(names, [band])[0] if isinstance(band, str) else band
        for band in chosen
    ]
    if len(found) != 3 or not all(-count <= index < count for index in found):
        raise ValueError(
            f'*bands* is {list(chosen)}: give three of the {count} channels, counted'
            ' from 0'
        )
    return found


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
