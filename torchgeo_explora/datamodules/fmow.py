"""fMoW, in batches."""

import os
from typing import Literal

import torch

from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.fmow.rgb import MEAN, STD, FMoWRGB
from torchgeo_explora.datasets.fmow.temporal import FMoWTemporal
from torchgeo_explora.datasets.tables.dataset import OnError

SPLITS = {'train': 'train', 'val': 'val', 'test': 'test'}


class FMoWRGBDataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.FMoWRGB`.

    *aug* normalises with SatMAE's statistics. A batch has ``image``, ``label`` and
    ``index``; the boxes stay in the data set.

    Args:
        root: Folder of ``train``, ``val`` and ``test_gt``, or of the CSV files.
        batch_size: Images in a batch.
        num_workers: Worker processes that read images.
        size: Side in pixels of the square images.
        crop: 'box' for one sample a bounding box, 'image' for one an image.
        variant: 'rgb' or 'msrgb'.
        train_csv: CSV file in *root* to train on, instead of the folder.
        val_csv: CSV file to validate with.
        test_csv: CSV file to test with.
        index_dir: Folder of the index files; *root* if None.
        max_missing: Largest share of listed samples that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        predict_split: Split to predict, in the order of its files.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
        download: Whether to fetch the folders of 'train' and 'val' if they are not
            there.
    """

    mean = 255 * torch.tensor(MEAN)
    std = 255 * torch.tensor(STD)
    dropped = ('bbox_xyxy',)

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        size: int = 224,
        crop: Literal['box', 'image'] = 'box',
        variant: Literal['rgb', 'msrgb'] = 'rgb',
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
        super().__init__(
            FMoWRGB,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {**SPLITS, 'predict': predict_split},
            root=root,
            size=size,
            crop=crop,
            variant=variant,
            index_dir=index_dir,
            max_missing=max_missing,
            on_error=on_error,
            download=download,
        )
        self.csv = {'train': train_csv, 'val': val_csv, 'test': test_csv}


class FMoWTemporalDataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.FMoWTemporal`.

    ``image`` is (B, T, 3, H, W) and ``timestamps`` (B, T, 3): year - 2002, month - 1,
    hour. *aug* normalises with SatMAE's statistics.

    Args:
        root: Folder of ``train``, ``val`` and ``test_gt``, or of the CSV files.
        batch_size: Series in a batch.
        num_workers: Worker processes that read images.
        times: T, images in a series.
        size: Side in pixels of the square images.
        crop: 'box' or 'image'.
        order: 'time' sorts a series, 'drawn' starts with the sample's own image.
        seed: Of the draw; None draws anew at every visit.
        legacy_sampling: Do all as SatMAE's loader did.
        train_csv: CSV file in *root* to train on, instead of the folder.
        val_csv: CSV file to validate with.
        test_csv: CSV file to test with.
        index_dir: Folder of the index files; *root* if None.
        max_missing: Largest share of listed samples that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next series.
        predict_split: Split to predict, in the order of its files.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
        download: Whether to fetch the folders of 'train' and 'val' if they are not
            there.
    """

    mean = 255 * torch.tensor(MEAN)
    std = 255 * torch.tensor(STD)

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 16,
        num_workers: int = 0,
        times: int = 3,
        size: int = 224,
        crop: Literal['box', 'image'] = 'box',
        order: Literal['time', 'drawn'] = 'time',
        seed: int | None = 0,
        legacy_sampling: bool = False,
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
        super().__init__(
            FMoWTemporal,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {**SPLITS, 'predict': predict_split},
            root=root,
            times=times,
            size=size,
            crop=crop,
            order=order,
            seed=seed,
            legacy_sampling=legacy_sampling,
            index_dir=index_dir,
            max_missing=max_missing,
            on_error=on_error,
            download=download,
        )
        self.csv = {'train': train_csv, 'val': val_csv, 'test': test_csv}
