"""Analyse a base and its delta on one sample of images, and write the files."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from torchgeo_explora.analysis import pictures
from torchgeo_explora.analysis.blocks import SHOWN, BlockReport, analyze_blocks
from torchgeo_explora.analysis.changes import block_changes
from torchgeo_explora.analysis.similarity import linear_cka
from torchgeo_explora.augment import Preprocess
from torchgeo_explora.callbacks.figures import shown_channels
from torchgeo_explora.functional.spacing import evenly_spaced
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.paths import expanded, require_writable
from torchgeo_explora.tasks.run.backbone import side_of, statistics
from torchgeo_explora.tasks.run.raw_images import RawImages, take_over_normalization
from torchgeo_explora.writing import replacing


class Sample:
    """The same few images of a data module, for every model.

    Args:
        datamodule: Any data module; the images are evenly spaced over its prediction
            set, or over its training set if it has none.
        images: Largest number of images.
        batch_size: Number of images at once.

    Raises:
        ValueError: If the data module has no images that can be read by number.
    """

    def __init__(
        self, datamodule: Any, images: int = 256, batch_size: int = 32
    ) -> None:
        """Set the data module up, and choose the images."""
        self.datamodule = datamodule
        self.batch_size = batch_size
        datamodule.prepare_data()
        dataset = None
        for stage, name in (('predict', 'predict_dataset'), ('fit', 'train_dataset')):
            # A data module of TorchGeo may have no prediction set.
            datamodule.setup(stage)
            dataset = getattr(datamodule, name, None)
            if dataset is not None and hasattr(dataset, '__len__'):
                break
        if dataset is None or not hasattr(dataset, '__len__') or not len(dataset):
            raise ValueError(
                f'{type(datamodule).__name__} has no images that can be read by number:'
                ' use ImageFolderDataModule or ScenesDataModule'
            )
        take_over_normalization(datamodule)
        chosen = torch.tensor(evenly_spaced(len(dataset), images))
        # Shuffled: data sets are often sorted by class, and the first images are shown.
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        self.dataset = Subset(dataset, chosen[order].tolist())

    def batches(
        self,
        backbone: Backbone,
        image_size: int | None = None,
        value_range: tuple[Any, Any] | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield batches of normalised images and their metadata.

        Args:
            backbone: Gives channels, bands and statistics.
            image_size: Side in pixels; that of the backbone if None.
            value_range: (low, high) of the values; that of the data module if None.
        """
        raw = RawImages(backbone, self.datamodule, value_range)
        view = Preprocess(image_size or side_of(backbone), *statistics(backbone))
        collate = getattr(self.datamodule, 'collate_fn', None)
        for batch in DataLoader(self.dataset, self.batch_size, collate_fn=collate):
            kept = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
            kept['image'] = view(raw(kept['image'])).nan_to_num(0)
            yield kept


def analyze(
    datamodule: Any,
    output: str | os.PathLike[str],
    base: Backbone,
    adapted: Backbone | None = None,
    images: int = 256,
    image_size: int | None = None,
    value_range: tuple[Any, Any] | None = None,
) -> dict[str, list[BlockReport]]:
    """Measure every block of a base, and of the base with a delta, and write the files.

    `blocks.csv` has a line per model and block; `curves.png`, `attention.png` and
    `features.png` show them. With a delta, `changes.csv` and `changes.png` have the
    relative change of every layer and the CKA of each block's output before and after.
    If TensorBoard is installed, all of it also goes to event files in the same folder.

    Args:
        datamodule: Any data module that gives images by number.
        output: The folder to write into.
        base: The base.
        adapted: The same backbone with a delta.
        images: Largest number of images.
        image_size: Side of the images in pixels; that of the base if None.
        value_range: (low, high) of the sensor values; that of the data module if None.

    Returns:
        Reports by model, `base` and `adapted`.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the data module has no images, or the models do not fit.
    """
    folder = Path(expanded(output))
    require_writable(folder)
    sample = Sample(datamodule, images)
    models = {'base': base} | ({} if adapted is None else {'adapted': adapted})
    reports = {
        name: analyze_blocks(each, sample.batches(each, image_size, value_range))
        for name, each in models.items()
    }
    rows = [
        {'model': name, **block.row()} for name in reports for block in reports[name]
    ]
    _write_csv(folder / 'blocks.csv', rows)
    shown, grid = _shown(base, sample, image_size, value_range)
    figures = {
        'curves': pictures.curves(reports),
        'attention': pictures.attention_maps(shown, reports, grid),
        'features': pictures.feature_maps(shown, reports, grid),
    }
    if adapted is not None:
        alike = [
            linear_cka(before.tokens, after.tokens)
            for before, after in zip(reports['base'], reports['adapted'], strict=True)
        ]
        changes = block_changes(base, adapted)
        lines = [
            {'block': number, 'cka': cka, **change}
            for number, (cka, change) in enumerate(zip(alike, changes, strict=True))
        ]
        _write_csv(folder / 'changes.csv', lines)
        figures['changes'] = pictures.change_map(changes, alike)
    for name, figure in figures.items():
        with replacing(folder / f'{name}.png') as part:
            figure.savefig(part, dpi=120, format='png')
    _write_events(folder, rows, figures)
    return reports


@torch.no_grad()
def _shown(
    backbone: Backbone,
    sample: Sample,
    image_size: int | None,
    value_range: tuple[Any, Any] | None,
) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the images that are shown, (n, 3, H, W) in [0, 1], and their grid."""
    batch = next(sample.batches(backbone, image_size, value_range))
    few = {k: v[:SHOWN] for k, v in batch.items() if k != 'label'}
    grid = backbone.embed(**few).grid
    mean, std = (torch.tensor(v)[:, None, None] for v in statistics(backbone))
    image = few['image']
    # For a series, the first image.
    image = (image[:, 0] if image.ndim == 5 else image) * std + mean
    return image[:, shown_channels(backbone, None)], grid


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, with a column for each name that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as part, open(part, 'w', newline='') as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: f'{v:.6g}' if isinstance(v, float) else v for k, v in row.items()}
            )


def _write_events(
    folder: Path, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Figure]
) -> None:
    """Write curves over blocks and figures for TensorBoard, if it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    for name, figure in figures.items():
        with SummaryWriter(str(folder)) as writer:
            writer.add_figure(name, figure)
    for model in dict.fromkeys(row['model'] for row in rows):
        with SummaryWriter(str(folder / model)) as writer:
            for row in rows:
                for name, value in row.items():
                    if row['model'] == model and isinstance(value, float):
                        writer.add_scalar(f'blocks/{name}', value, row['block'])
