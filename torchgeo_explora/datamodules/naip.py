"""NAIP land cover, in batches."""

import os
from collections.abc import Sequence
from typing import Literal

import torch

from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.naip import BANDS, MEAN, STD, NAIPLandCover
from torchgeo_explora.datasets.tables.dataset import OnError

type Split = Literal['train', 'val', 'test', 'val+test']


class NAIPLandCoverDataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.NAIPLandCover`.

    *aug* normalises with SatMAE's statistics; near infrared, which has none, with 0.5
    and 0.25.

    Args:
        root: Folder of the arrays and of the tiles' folder.
        batch_size: Tiles in a batch.
        num_workers: Worker processes that read tiles.
        bands: Bands and their order, of 'red', 'green', 'blue' and 'nir'.
        size: Side in pixels of the images.
        val_split: Split to validate with.
        test_split: Split to test with; SatMAE's is 'val+test'.
        predict_split: Split to predict.
        tiles: Name of the tiles' folder.
        labels: Name of the array of codes.
        splits: Name of the array of splits.
        index_dir: Folder of the report of missing tiles; *root* if None.
        max_missing: Largest share of tiles that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable tile, 'skip' takes the next one.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        bands: Sequence[str] = ('red', 'green', 'blue'),
        size: int = 224,
        val_split: Split = 'val',
        test_split: Split = 'test',
        predict_split: Split = 'test',
        tiles: str = 'supervised_50_100',
        labels: str = 'y_50_100.npy',
        splits: str = 'splits.npy',
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
    ) -> None:
        """Keep the arguments; tiles are listed in ``setup``."""
        self.bands = tuple(bands)
        mean = dict(zip(BANDS, (*MEAN, 0.5), strict=True))
        std = dict(zip(BANDS, (*STD, 0.25), strict=True))
        self.mean = 255 * torch.tensor([mean[name] for name in self.bands])
        self.std = 255 * torch.tensor([std[name] for name in self.bands])
        super().__init__(
            NAIPLandCover,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {
                'train': 'train',
                'val': val_split,
                'test': test_split,
                'predict': predict_split,
            },
            root=root,
            bands=self.bands,
            size=size,
            tiles=tiles,
            labels=labels,
            splits=splits,
            index_dir=index_dir,
            max_missing=max_missing,
            on_error=on_error,
        )
