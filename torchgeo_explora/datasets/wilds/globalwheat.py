"""WILDS GlobalWheat: heads of wheat in photographs of fields."""

import math
import os
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from torchgeo_explora.datasets.tables.dataset import OnError, Transform, check_choice
from torchgeo_explora.datasets.tables.fetch import Archive
from torchgeo_explora.datasets.wilds.base import (
    BUNDLE,
    WILDSDataset,
    find_folder,
    open_wilds_index,
)

#: CSV file by split.
LABELLED = {
    'train': 'official_train.csv',
    'val': 'official_val.csv',
    'test': 'official_test.csv',
    'id_val': 'fixed_train_val.csv',
    'id_test': 'fixed_train_test.csv',
}
UNLABELLED = {
    f'{name}_unlabeled': f'official_{name}_unlabeled.csv'
    for name in ('train', 'val', 'test', 'extra')
}

type Split = Literal[
    'train',
    'val',
    'test',
    'id_val',
    'id_test',
    'train_unlabeled',
    'val_unlabeled',
    'test_unlabeled',
    'extra_unlabeled',
]


class GlobalWheat(WILDSDataset):
    """Photographs of 1024 x 1024 pixels with a box around each head of wheat.

    The folders ``globalwheat_v1.1`` and ``globalwheat_unlabeled_v1.0`` as WILDS lays
    them out. A domain is a session: one field on one day. WILDS reports the detection
    accuracy of 'test', averaged over its sessions.

    Args:
        root: The folder of the split, or the one above.
        split: 'train', 'val', 'test', 'id_val' or 'id_test', or, without boxes,
            'train_unlabeled', 'val_unlabeled', 'test_unlabeled' or 'extra_unlabeled'.
        size: Side in pixels of the images; None for the 1024 of the files.
        index_dir: Folder of the index file; that of the data by default.
        max_missing: Largest share of listed files that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        transforms: Applied to each sample.
        download: Whether to fetch the archive of the split if it is not there. Its size
            is compared with the published one; no checksum is published.

    Attributes:
        domains: Number of each photograph's session.

    Raises:
        NoSamplesError: If there is no sample; a DatasetNotFoundError.
        FileNotFoundError: If too many files are missing.
        RuntimeError: If the archive cannot be fetched.
        ValueError: If *split* is unknown, or the CSV file lacks columns or has boxes
            that are none.
    """

    classes = ('background', 'wheat head')
    #: Archives of the labelled and of the unlabelled splits.
    archive = Archive(
        'globalwheat_v1.1',
        BUNDLE.format('0x36e16907b7254571b708b725f8beae52'),
        10_284_949_504,
    )
    unlabeled_archive = Archive(
        'globalwheat_unlabeled_v1.0',
        BUNDLE.format('0x59d4c1b8b7ad45cc83e080d11d1eaf94'),
        103_766_940_000,
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
        files = LABELLED | UNLABELLED
        check_choice('split', split, tuple(files))
        self.labelled = split in LABELLED
        self.root = os.fspath(root)
        archive = self.archive if self.labelled else self.unlabeled_archive
        folder = find_folder(self.root, archive, files[split], download)

        def describe(frame: pd.DataFrame) -> pd.DataFrame:
            described = pd.DataFrame(
                {
                    'path': 'images/' + frame['image_name'].astype(str),
                    'split': split,
                    'domain': frame['domain'],
                    'place': 'session ' + frame['domain'].astype(str),
                }
            )
            if self.labelled:
                described['boxes'] = frame['BoxesString'].astype(str)
                described['boxes'].map(parse_boxes)
            return described

        columns = ['image_name', 'domain']
        index = open_wilds_index(
            folder,
            files[split],
            [*columns, 'BoxesString'] if self.labelled else columns,
            ['domain'],
            describe,
            None if index_dir is None else os.fspath(index_dir),
        )
        super().__init__(index, folder, split, size, max_missing, on_error, transforms)

    def targets(self, index: int, width: int, height: int) -> dict[str, Tensor]:
        """Return the boxes of a photograph.

        ``bbox_xyxy`` is (N, 4) float32, both corners in pixels of the image returned;
        ``label`` (N,) long, all 1.
        """
        if not self.labelled:
            return {}
        text = self.index.table['boxes'][int(self.rows[index])].as_py()
        boxes = torch.tensor(parse_boxes(text), dtype=torch.float32).view(-1, 4)
        if self.size is not None:
            boxes = boxes * torch.tensor([self.size / width, self.size / height] * 2)
        return {
            'bbox_xyxy': boxes,
            'label': torch.ones(len(boxes), dtype=torch.long),
        }


def parse_boxes(text: str) -> list[list[float]]:
    """Return the boxes of a CSV field such as '0 10 50 70;20 30 40 60' or 'no_box'.

    Raises:
        ValueError: If a box has not four numbers.
    """
    if text in ('no_box', 'nan', ''):
        return []
    try:
        boxes = [[float(value) for value in box.split()] for box in text.split(';')]
    except ValueError:
        boxes = [[]]
    if not all(len(box) == 4 and all(map(math.isfinite, box)) for box in boxes):
        raise ValueError(f'boxes {text!r} must be four numbers each, separated by ;')
    return boxes
