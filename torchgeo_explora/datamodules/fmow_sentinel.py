"""fMoW-Sentinel, in batches."""

import os
from collections.abc import Sequence
from typing import Literal

import torch

from torchgeo_explora.datamodules.normalize import Normalize
from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.fmow.sentinel import FMoWSentinel
from torchgeo_explora.datasets.pixels import sentinel2
from torchgeo_explora.datasets.tables.dataset import OnError


class FMoWSentinelDataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.FMoWSentinel`.

    *aug* does as SatMAE: mean -+ 2 standard deviations of a band become 0 and 1, values
    beyond are clipped. SatMAE's rounding to 8 bits is left to the task.

    Args:
        root: Folder of the CSV files and the images.
        batch_size: Images in a batch.
        num_workers: Worker processes that read images.
        bands: Names of the bands and their order, such as 'B8A'; all 13 by default.
            The group-channel models leave out B01, B09 and B10.
        size: Side in pixels of the square images.
        years: First and last year of the images.
        train_csv: CSV file in *root* to train on, instead of ``train.csv``.
        val_csv: CSV file to validate with, instead of ``val.csv``.
        test_csv: CSV file to test with, instead of ``test_gt.csv``.
        index_dir: Folder of the index files; *root* if None.
        max_missing: Largest share of listed samples that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        predict_split: Split to predict, in the order of its index.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
        download: Whether to fetch CSV files and images if they are not there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        bands: Sequence[str] = sentinel2.BANDS,
        size: int = 96,
        years: tuple[int, int] = (2000, 2020),
        train_csv: str | None = None,
        val_csv: str | None = None,
        test_csv: str | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        predict_split: Literal['train', 'val', 'test'] = 'val',
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        download: bool = False,
    ) -> None:
        """Keep the arguments; the index is opened in ``setup``."""
        self.bands = tuple(bands)
        low, high = sentinel2.reflectance_range(self.bands)
        self.value_range = low, high
        self.mean, self.std = torch.tensor(low), torch.tensor(high) - torch.tensor(low)
        super().__init__(
            FMoWSentinel,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {'train': 'train', 'val': 'val', 'test': 'test', 'predict': predict_split},
            root=root,
            bands=self.bands,
            size=size,
            years=years,
            index_dir=index_dir,
            max_missing=max_missing,
            on_error=on_error,
            download=download,
        )
        self.aug = Normalize(self.mean, self.std, self.value_range)
        self.csv = {'train': train_csv, 'val': val_csv, 'test': test_csv}
