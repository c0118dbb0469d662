"""Figures of a run: which bands they show, and where they are kept."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.augment import band_indices
from torchgeo_explora.functional.spacing import middle_values
from torchgeo_explora.paths import expanded
from torchgeo_explora.writing import replacing, write_to

_TRUE_COLOUR = ('B04', 'B03', 'B02')
# Number of values from which quantiles are computed.
_SOME = 1_000_000


def shown_channels(backbone: Any, bands: Sequence[int | str] | None) -> list[int]:
    """Return the three channels to show as red, green and blue.

    Args:
        backbone: Gives the number of channels, and the names of bands if it has any.
        bands: Indices, or names if the backbone has names. If None, the true colours
            among Sentinel-2's bands, else the first three channels, or the first one in
            grey if there are fewer.

    Raises:
        ValueError: If there is no such band, or names are given to a backbone without
            them.
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


def contrast(images: Tensor) -> tuple[float, float]:
    """Return the values to show as black and white, for images that belong together.

    Reflectance fills a small part of its range: without stretching, it looks black.

    Args:
        images: Any shape; NaN is left out.

    Returns:
        The 2 % and 98 % quantiles of all channels together, so that colours are kept.
    """
    low, high = middle_values(images, 0.02, _SOME)
    return (0.0, 1.0) if isnan(low) else (low, max(high, low + 1e-6))


def stretched(images: Tensor, limits: tuple[float, float]) -> Tensor:
    """Return images with the limits of `contrast` at 0 and 1, clipped there."""
    low, high = limits
    return ((images - low) / (high - low)).clamp(0, 1).nan_to_num(0)


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


def save_figure(
    figure: Figure, name: str, trainer: Trainer, folder: str | Path | None = None
) -> None:
    """Write a figure to *folder* as PNG, and give it to the loggers that take figures.

    Those are TensorBoard, Weights & Biases and MLflow; others, such as CSV, get none.

    Args:
        figure: The figure.
        name: Name of the file without its suffix, and of the figure for the loggers.
        trainer: Provides the loggers and the step.
        folder: The trainer's root folder if None. Both may be on another machine, such
            as `s3://bucket/run`.
    """

    def write(path: Path) -> None:
        with replacing(path) as part:
            figure.savefig(part, dpi=120, format='png')
        # Here, because some loggers read the file.
        for logger in trainer.loggers:
            _log_figure(logger, name, figure, path, trainer.global_step)

    root = expanded(folder or trainer.default_root_dir)
    place, _ = write_to(root, f'{name}.png', write)
    rank_zero_info(f'{name}: {place}')


def _log_figure(
    logger: Logger, name: str, figure: Figure, path: Path, step: int
) -> None:
    # `log_image` of Weights & Biases reads files; `experiment` would start a run.
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [str(path)], step)
        return
    experiment: Any = getattr(logger, 'experiment', None)
    if isinstance(logger, MLFlowLogger):
        experiment.log_figure(logger.run_id, figure, f'{name}/{step:07d}.png')
    elif hasattr(experiment, 'add_figure'):
        experiment.add_figure(name, figure, global_step=step)
