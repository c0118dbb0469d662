"""WILDS data sets, in batches."""

import os
from typing import Any

from torchgeo.datamodules.utils import collate_fn_detection

from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.tables.dataset import OnError
from torchgeo_explora.datasets.wilds import camelyon17, globalwheat, iwildcam
from torchgeo_explora.datasets.wilds.camelyon17 import Camelyon17
from torchgeo_explora.datasets.wilds.globalwheat import GlobalWheat
from torchgeo_explora.datasets.wilds.iwildcam import IWildCam


class Camelyon17DataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.Camelyon17`.

    Pre-train on 'train_unlabeled' or on the labelled 'train', whose labels are not
    looked at then.

    Args:
        root: Folder of ``camelyon17_v1.0`` and ``camelyon17_unlabeled_v1.0``.
        batch_size: Patches in a batch.
        num_workers: Worker processes that read patches.
        size: Side in pixels of the images; None for the 96 of the files.
        train_split: Split to train on.
        val_split: Split to validate with: 'val' (another hospital) or 'id_val'.
        test_split: Split to test with.
        predict_split: Split to predict.
        index_dir: Folder of the index files; that of the data by default.
        max_missing: Largest share of listed files that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
        download: Whether to fetch the archives of the splits in use if they
            are not there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        size: int | None = None,
        train_split: camelyon17.Split = 'train',
        val_split: camelyon17.Split = 'val',
        test_split: camelyon17.Split = 'test',
        predict_split: camelyon17.Split = 'test',
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        download: bool = False,
    ) -> None:
        """Keep the arguments; the index is opened in ``setup``."""
        super().__init__(
            Camelyon17,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {
                'train': train_split,
                'val': val_split,
                'test': test_split,
                'predict': predict_split,
            },
            root=root,
            size=size,
            index_dir=index_dir,
            max_missing=max_missing,
            on_error=on_error,
            download=download,
        )


class IWildCamDataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.IWildCam`.

    Args:
        root: Folder of ``iwildcam_v2.0`` and ``iwildcam_unlabeled_v1.0``.
        batch_size: Photographs in a batch.
        num_workers: Worker processes that read them.
        size: Side in pixels of the square images, stretched.
        train_split: Split to train on.
        val_split: Split to validate with: 'val' (other camera traps) or 'id_val'.
        test_split: Split to test with: 'test' or 'id_test'.
        predict_split: Split to predict.
        index_dir: Folder of the index files; that of the data by default.
        max_missing: Largest share of listed files that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
        download: Whether to fetch the archives of the splits in use if they
            are not there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        size: int = 224,
        train_split: iwildcam.Split = 'train',
        val_split: iwildcam.Split = 'val',
        test_split: iwildcam.Split = 'test',
        predict_split: iwildcam.Split = 'test',
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        download: bool = False,
    ) -> None:
        """Keep the arguments; the index is opened in ``setup``."""
        super().__init__(
            IWildCam,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {
                'train': train_split,
                'val': val_split,
                'test': test_split,
                'predict': predict_split,
            },
            root=root,
            size=size,
            index_dir=index_dir,
            max_missing=max_missing,
            on_error=on_error,
            download=download,
        )


class GlobalWheatDataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.GlobalWheat`.

    Where there are boxes, ``bbox_xyxy`` and ``label`` are lists with a tensor for each
    image, as TorchGeo's detection task takes them.

    Args:
        root: Folder of ``globalwheat_v1.1`` and ``globalwheat_unlabeled_v1.0``.
        batch_size: Photographs in a batch.
        num_workers: Worker processes that read them.
        size: Side in pixels of the images; None for the 1024 of the files.
        train_split: Split to train on.
        val_split: Split to validate with: 'val' (other sessions) or 'id_val'.
        test_split: Split to test with: 'test' or 'id_test'.
        predict_split: Split to predict.
        index_dir: Folder of the index files; that of the data by default.
        max_missing: Largest share of listed files that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
        download: Whether to fetch the archives of the splits in use if they
            are not there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 8,
        num_workers: int = 0,
        size: int | None = None,
        train_split: globalwheat.Split = 'train',
        val_split: globalwheat.Split = 'val',
        test_split: globalwheat.Split = 'test',
        predict_split: globalwheat.Split = 'test',
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        download: bool = False,
    ) -> None:
        """Keep the arguments; the index is opened in ``setup``."""
        super().__init__(
            GlobalWheat,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {
                'train': train_split,
                'val': val_split,
                'test': test_split,
                'predict': predict_split,
            },
            root=root,
            size=size,
            index_dir=index_dir,
            max_missing=max_missing,
            on_error=on_error,
            download=download,
        )

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch; boxes and labels stay apart by image."""
        keys = ('bbox_xyxy', 'label')
        batch = super().collate(
            [{k: v for k, v in sample.items() if k not in keys} for sample in samples]
        )
        if 'bbox_xyxy' in samples[0]:
            boxes: dict[str, Any] = dict(collate_fn_detection(samples))
            batch |= {key: boxes[key] for key in keys}
        return batch
