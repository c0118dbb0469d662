"""WILDS Camelyon17: tumours in lymph nodes, from five hospitals."""

import os
from typing import Literal

import numpy as np
import pandas as pd

from torchgeo_explora.datasets.tables.dataset import OnError, Transform, check_choice
from torchgeo_explora.datasets.tables.fetch import Archive
from torchgeo_explora.datasets.wilds.base import (
    BUNDLE,
    WILDSDataset,
    find_folder,
    open_wilds_index,
)

#: Hospitals of the validation and test splits, counted from 0.
VAL_HOSPITAL, TEST_HOSPITAL = 1, 2
LABELLED = ('train', 'id_val', 'val', 'test')
UNLABELLED = ('train_unlabeled', 'val_unlabeled', 'test_unlabeled')

type Split = Literal[
    'train',
    'id_val',
    'val',
    'test',
    'train_unlabeled',
    'val_unlabeled',
    'test_unlabeled',
]


class Camelyon17(WILDSDataset):
    """Patches of 96 x 96 pixels: is there a tumour in the 32 x 32 in the middle?

    The folders ``camelyon17_v1.0`` and ``camelyon17_unlabeled_v1.0`` as WILDS lays them
    out. Validation and test are other hospitals than training; 'id_val' is of those of
    training. WILDS reports the accuracy over all test patches, averaged over runs.

    Args:
        root: The folder of the split, or the one above.
        split: 'train', 'id_val', 'val' or 'test', or, without labels,
            'train_unlabeled', 'val_unlabeled' or 'test_unlabeled'.
        size: Side in pixels of the images; None for the 96 of the files.
        index_dir: Folder of the index file; that of the data by default.
        max_missing: Largest share of listed files that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        transforms: Applied to each sample.
        download: Whether to fetch the archive of the split if it is not there. Its size
            is compared with the published one; no checksum is published.

    Attributes:
        domains: Hospital of each patch, 0 to 4.

    Raises:
        NoSamplesError: If there is no sample; a DatasetNotFoundError.
        FileNotFoundError: If too many files are missing.
        RuntimeError: If the archive cannot be fetched.
        ValueError: If *split* is unknown or ``metadata.csv`` lacks columns.
    """

    classes = ('normal', 'tumor')
    #: Archives of the labelled and of the unlabelled splits.
    archive = Archive(
        'camelyon17_v1.0',
        BUNDLE.format('0xe45e15f39fb54e9d9e919556af67aabe'),
        10_658_709_504,
    )
    unlabeled_archive = Archive(
        'camelyon17_unlabeled_v1.0',
        BUNDLE.format('0xa78be8a88a00487a92006936514967d2'),
        69_442_379_933,
    )

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: Split = 'train',
        size: int | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
        download: bool = False,
    ) -> None:
        """Open the index, or build it."""
        check_choice('split', split, (*LABELLED, *UNLABELLED))
        labelled = split in LABELLED
        self.root = os.fspath(root)
        archive = self.archive if labelled else self.unlabeled_archive
        folder = find_folder(self.root, archive, 'metadata.csv', download)
        numbers = ['node', 'x_coord', 'y_coord', 'center']
        if labelled:
            numbers += ['tumor', 'split']
        index = open_wilds_index(
            folder,
            'metadata.csv',
            ['patient', *numbers],
            numbers,
            _describe_labelled if labelled else _describe_unlabelled,
            None if index_dir is None else os.fspath(index_dir),
        )
        super().__init__(index, folder, split, size, max_missing, on_error, transforms)


def _describe(frame: pd.DataFrame) -> pd.DataFrame:
    patient = frame['patient'].astype(str).str.zfill(3)
    stem = 'patient_' + patient + '_node_' + frame['node'].astype(str)
    corner = '_x_' + frame['x_coord'].astype(str) + '_y_' + frame['y_coord'].astype(str)
    return pd.DataFrame(
        {
            'path': 'patches/' + stem + '/patch_' + stem + corner + '.png',
            'domain': frame['center'],
            # A slide shows a node; its own number may mean another one elsewhere.
            'place': stem,
        }
    )


def _describe_labelled(frame: pd.DataFrame) -> pd.DataFrame:
    described = _describe(frame)
    described['label'] = frame['tumor']
    # The file tells training (0) from in-distribution validation (1); hospitals that
    # are held out override it.
    split = np.where(frame['split'] == 0, 'train', 'id_val').astype(object)
    split[frame['center'] == VAL_HOSPITAL] = 'val'
    split[frame['center'] == TEST_HOSPITAL] = 'test'
    described['split'] = split
    return described


def _describe_unlabelled(frame: pd.DataFrame) -> pd.DataFrame:
    described = _describe(frame)
    split = np.full(len(frame), 'train_unlabeled', dtype=object)
    split[frame['center'] == VAL_HOSPITAL] = 'val_unlabeled'
    split[frame['center'] == TEST_HOSPITAL] = 'test_unlabeled'
    described['split'] = split
    return described
