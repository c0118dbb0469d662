"""WILDS iWildCam: animals before camera traps."""

import os
from typing import Literal

import pandas as pd

from torchgeo_explora.datasets.tables.dataset import OnError, Transform, check_choice
from torchgeo_explora.datasets.tables.fetch import Archive
from torchgeo_explora.datasets.tables.index_file import read_csv, whole_numbers
from torchgeo_explora.datasets.wilds.base import (
    BUNDLE,
    WILDSDataset,
    find_folder,
    open_wilds_index,
)

NUM_CLASSES = 182
LABELLED = ('train', 'val', 'test', 'id_val', 'id_test')

type Split = Literal['train', 'val', 'test', 'id_val', 'id_test', 'extra_unlabeled']


class IWildCam(WILDSDataset):
    """Photographs of camera traps: 182 species, one of them 'empty'.

    The folders ``iwildcam_v2.0`` and ``iwildcam_unlabeled_v1.0`` as WILDS lays them
    out. 'val' and 'test' are of other camera traps than 'train'; 'id_val' and 'id_test'
    of the same ones on other days. WILDS reports the macro F1 score of 'test'.

    Args:
        root: The folder of the split, or the one above.
        split: 'train', 'val', 'test', 'id_val' or 'id_test', or, without labels,
            'extra_unlabeled'.
        size: Side in pixels of the square images, stretched (WILDS takes 448); None
            leaves them as they are.
        index_dir: Folder of the index file; that of the data by default.
        max_missing: Largest share of listed files that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        transforms: Applied to each sample.
        download: Whether to fetch the archive of the split if it is not there. Its size
            is compared with the published one; no checksum is published.

    Attributes:
        domains: Number of each photograph's camera trap.
        classes: Names of the species, where ``categories.csv`` has them.

    Raises:
        NoSamplesError: If there is no sample; a DatasetNotFoundError.
        FileNotFoundError: If too many files are missing.
        RuntimeError: If the archive cannot be fetched.
        ValueError: If *split* is unknown or ``metadata.csv`` lacks columns.
    """

    #: Archives of the labelled and of the unlabelled splits.
    archive = Archive(
        'iwildcam_v2.0',
        BUNDLE.format('0x6313da2b204647e79a14b468131fcd64'),
        11_957_420_032,
    )
    unlabeled_archive = Archive(
        'iwildcam_unlabeled_v1.0',
        BUNDLE.format('0xff56ea50fbf64aabbc4d09b2e8d50e18'),
        41_016_937_676,
    )

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: Split = 'train',
        size: int | None = 224,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
        download: bool = False,
    ) -> None:
        """Open the index, or build it."""
        check_choice('split', split, (*LABELLED, 'extra_unlabeled'))
        labelled = split in LABELLED
        self.root = os.fspath(root)
        archive = self.archive if labelled else self.unlabeled_archive
        folder = find_folder(self.root, archive, 'metadata.csv', download)
        self.classes = _names(folder)
        index = open_wilds_index(
            folder,
            'metadata.csv',
            ['split', 'location_remapped', 'y', 'filename']
            if labelled
            else ['location_remapped', 'uid'],
            ['location_remapped', 'y'] if labelled else ['location_remapped'],
            _describe_labelled if labelled else _describe_unlabelled,
            None if index_dir is None else os.fspath(index_dir),
        )
        super().__init__(index, folder, split, size, max_missing, on_error, transforms)


def _describe(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    trap = frame['location_remapped']
    return pd.DataFrame({'domain': trap, 'place': f'{kind} ' + trap.astype(str)})


def _describe_labelled(frame: pd.DataFrame) -> pd.DataFrame:
    described = _describe(frame, 'camera trap')
    # Photographs of all splits lie in the folder train.
    described['path'] = 'train/' + frame['filename'].astype(str)
    described['label'] = frame['y']
    described['split'] = frame['split']
    unknown = frame['split'][~frame['split'].isin(LABELLED)]
    if len(unknown):
        raise ValueError(
            f'metadata.csv has the split {unknown.iloc[0]!r}: expected one of'
            f' {LABELLED}'
        )
    return described


def _describe_unlabelled(frame: pd.DataFrame) -> pd.DataFrame:
    # Other camera traps than the labelled ones, whatever their numbers.
    described = _describe(frame, 'unlabelled camera trap')
    described['path'] = 'images/' + frame['uid'].astype(str) + '.jpg'
    described['split'] = 'extra_unlabeled'
    return described


def _names(folder: str) -> tuple[str, ...]:
    """Return the names of the classes, their numbers where they are not known."""
    names = [str(label) for label in range(NUM_CLASSES)]
    file = os.path.join(folder, 'categories.csv')
    if os.path.isfile(file):
        table = read_csv(file, ('y', 'name')).to_pandas()
        labels = whole_numbers(file, table['y'])
        for label, name in zip(labels, table['name'], strict=True):
            # Species of the competition that the data set leaves out are 99999.
            if 0 <= label < NUM_CLASSES:
                names[int(label)] = str(name)
    return tuple(names)
