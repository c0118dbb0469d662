"""Data modules for the WILDS data sets."""

import os
from typing import Any

from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.wilds.recipes import Camelyon17, GlobalWheat, IWildCam


class Camelyon17DataModule(SplitDataModule):
    """Batches of `Camelyon17`.

    Validate with 'val' (another hospital) or 'id_val'. Pre-train on 'train_unlabeled'
    or on the labelled 'train', whose labels are then ignored.
    """

    def open_split(self, split: str, **dataset: Any) -> Camelyon17:
        """Return the data set of a split."""
        return Camelyon17(self.root, split, **dataset)


class IWildCamDataModule(SplitDataModule):
    """Batches of `IWildCam`.

    Validate with 'val' (other camera traps) or 'id_val', test with 'test' or 'id_test'.
    """

    def open_split(self, split: str, **dataset: Any) -> IWildCam:
        """Return the data set of a split."""
        return IWildCam(self.root, split, **dataset)


class GlobalWheatDataModule(SplitDataModule):
    """Batches of `GlobalWheat`.

    Validate with 'val' (other sessions) or 'id_val', test with 'test' or 'id_test'.
    If there are boxes, `bbox_xyxy` and `label` are lists with one tensor per image, as
    TorchGeo's detection task expects.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 8,
        num_workers: int = 0,
        train_split: str = 'train',
        val_split: str | None = 'val',
        test_split: str = 'test',
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
            train_split,
            val_split,
            test_split,
            predict_split,
            pin_memory,
            prefetch_factor,
        )
        self.kwargs = dataset

    def open_split(self, split: str, **dataset: Any) -> GlobalWheat:
        """Return the data set of a split."""
        return GlobalWheat(self.root, split, **dataset)
