"""Data modules for fMoW: true colour, series and Sentinel-2."""

import os
from typing import Any

import torch

from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.fmow.rgb import MEAN, STD, FMoWRGB
from torchgeo_explora.datasets.fmow.sentinel import FMoWSentinel
from torchgeo_explora.datasets.fmow.temporal import FMoWTemporal
from torchgeo_explora.datasets.pixels import sentinel2


class _FMoWDataModule(SplitDataModule):
    """Base of the fMoW data modules, whose splits may come from CSV files."""

    predicted = 'val'

    def open_split(
        self,
        split: str,
        train_csv: str | None = None,
        val_csv: str | None = None,
        test_csv: str | None = None,
        **dataset: Any,
    ) -> Any:
        """Return the data set of a split.

        Args:
            split: 'train', 'val' or 'test'.
            train_csv: CSV file in *root* to train on, instead of the default source.
            val_csv: CSV file to validate with.
            test_csv: CSV file to test with.
            **dataset: Arguments of the data set.
        """
        files = {'train': train_csv, 'val': val_csv, 'test': test_csv}
        name = files.get(split)
        csv = None if name is None else os.path.join(self.root, name)
        return self.open_files(split, csv, **dataset)

    def open_files(self, split: Any, csv: str | None, **dataset: Any) -> Any:
        """Return the data set of a split, from a CSV file if one is given."""
        raise NotImplementedError


class FMoWRGBDataModule(_FMoWDataModule):
    """Batches of `FMoWRGB`.

    *aug* normalises with SatMAE's statistics. A batch has `image`, `label` and `index`;
    the boxes stay in the data set.
    """

    mean = 255 * torch.tensor(MEAN)
    std = 255 * torch.tensor(STD)

    def open_files(
        self, split: Any, csv: str | None, size: int = 224, **dataset: Any
    ) -> FMoWRGB:
        """Return the data set of a split.

        Args:
            split: 'train', 'val' or 'test'.
            csv: CSV file to take instead of the folder.
            size: Side of the square images in pixels; a batch needs a common size.
            **dataset: Arguments of the data set.
        """
        return FMoWRGB(self.root, split, size=size, csv=csv, **dataset)


class FMoWTemporalDataModule(_FMoWDataModule):
    """Batches of `FMoWTemporal`.

    `image` is (B, T, 3, H, W) and `timestamps` (B, T, 3): year - 2002, month - 1, hour.
    *aug* normalises with SatMAE's statistics.
    """

    mean = FMoWRGBDataModule.mean
    std = FMoWRGBDataModule.std

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 16,
        num_workers: int = 0,
        predict_split: str | None = None,
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        **dataset: Any,
    ) -> None:
        """Keep the arguments; the index is opened in `setup`."""
        super().__init__(
            root,
            batch_size,
            num_workers,
            predict_split=predict_split,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
        )
        self.kwargs = dataset

    def open_files(self, split: Any, csv: str | None, **dataset: Any) -> FMoWTemporal:
        """Return the data set of a split."""
        return FMoWTemporal(self.root, split, csv=csv, **dataset)


class FMoWSentinelDataModule(_FMoWDataModule):
    """Batches of `FMoWSentinel`.

    *aug* follows SatMAE: it maps mean - 2 and mean + 2 standard deviations of each band
    to 0 and 1, and clips values beyond. SatMAE's rounding to 8 bits is left to the
    task. The group-channel models leave out B01, B09 and B10.
    """

    bands = sentinel2.BANDS
    value_range = sentinel2.reflectance_range(bands)
    mean = torch.tensor(value_range[0])
    std = torch.tensor(value_range[1]) - mean
    clip = True

    def open_files(self, split: Any, csv: str | None, **dataset: Any) -> FMoWSentinel:
        """Return the data set of a split."""
        return FMoWSentinel(self.root, split, csv=csv, **dataset)

    def adopt(self, dataset: FMoWSentinel) -> None:
        """Take the bands and their range from the data set."""
        self.adopt_range(dataset)
