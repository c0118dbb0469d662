"""WILDS: Camelyon17, iWildCam and GlobalWheat with their official splits.

Koh et al., *WILDS* (https://arxiv.org/abs/2012.07421); unlabelled splits: Sagawa et al.
(https://arxiv.org/abs/2112.05090). Images are stretched to a square, as WILDS does. A
sample has its `domain`, by which WILDS groups results.
"""

import glob
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from torchgeo_explora.datasets.tables.csv_dataset import CSVColumns, CSVDataset
from torchgeo_explora.datasets.tables.dataset import check_choice
from torchgeo_explora.datasets.tables.fetch import Archive, fetch_archive
from torchgeo_explora.datasets.tables.index_file import read_csv, whole_numbers

# Address of an archive of WILDS by its number, as in the source of its own package. No
# checksum is published.
_BUNDLE = 'https://worksheets.codalab.org/rest/bundles/{}/contents/blob/'
_HINT = (
    'pass download=True, or pass as *root* a WILDS data set as its own package'
    ' downloads it (https://wilds.stanford.edu), or the folder above'
)


def _find_folder(root: str, archive: Archive, csv: str, download: bool) -> str:
    """Return the newest version of a data set's folder in *root*, or *root* itself.

    Args:
        root: The parent of the folder, or the folder.
        archive: What the folder is unpacked from.
        csv: File that it must hold.
        download: Whether to fetch the archive if there is no such file.

    Raises:
        RuntimeError: If the archive cannot be fetched.
    """
    name = archive.folder.rpartition('_v')[0]
    # Ends with a number: archives and half-unpacked folders do not.
    found = sorted(glob.glob(os.path.join(glob.escape(root), f'{name}_v*[0-9]')))
    folder = found[-1] if found else root
    if download and not os.path.isfile(os.path.join(folder, csv)):
        return fetch_archive(archive, root)
    return folder


def _read(file: str, names: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """Return a CSV file that must have some columns, some of them of whole numbers."""
    # '004' is a name, not a number.
    table = read_csv(file, (*names, *numbers), dict.fromkeys(names, pa.string()))
    frame = table.to_pandas()
    for name in numbers:
        frame[name] = whole_numbers(file, frame[name])
    return frame


class Camelyon17(CSVDataset):
    """Patches of 96 x 96 pixels: is there a tumour in the 32 x 32 in the middle?

    It reads the folders `camelyon17_v1.0` and `camelyon17_unlabeled_v1.0` as WILDS lays
    them out. Validation and test are from other hospitals than training; 'id_val' is
    from the hospitals of training. WILDS reports the accuracy over all test patches,
    averaged over runs. A domain is a hospital, 0 to 4.

    Args:
        root: The folder of the split, or the one above.
        split: 'train', 'id_val', 'val' or 'test', or, without labels,
            'train_unlabeled', 'val_unlabeled' or 'test_unlabeled'.
        size: Side in pixels of the images; None for the 96 of the files.
        download: Whether to fetch the archive of the split if it is not there. Its size
            is compared with the published one; no checksum is published.
        **table: Arguments of `CSVDataset` such as *on_error*.

    Raises:
        RuntimeError: If the archive cannot be fetched.
    """

    classes = ('normal', 'tumor')
    hint = _HINT
    #: Archives of the labelled and of the unlabelled splits.
    archive = Archive(
        'camelyon17_v1.0',
        _BUNDLE.format('0xe45e15f39fb54e9d9e919556af67aabe'),
        10_658_709_504,
    )
    unlabeled_archive = Archive(
        'camelyon17_unlabeled_v1.0',
        _BUNDLE.format('0xa78be8a88a00487a92006936514967d2'),
        69_442_379_933,
    )
    labelled_splits = ('train', 'id_val', 'val', 'test')
    unlabelled_splits = ('train_unlabeled', 'val_unlabeled', 'test_unlabeled')

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: str = 'train',
        size: int | None = None,
        download: bool = False,
        **table: Any,
    ) -> None:
        """Open the index, or build it."""
        check_choice('split', split, self.labelled_splits + self.unlabelled_splits)
        labelled = split in self.labelled_splits
        archive = self.archive if labelled else self.unlabeled_archive
        label = 'label' if labelled else None
        super().__init__(
            _find_folder(os.fspath(root), archive, 'metadata.csv', download),
            split,
            'metadata.csv',
            CSVColumns(label=label, domain='domain', place='place'),
            self.classes,
            size,
            stretch=True,
            bands=None,
            value_range=None,
            band_names=None,
            **table,
        )

    def read_rows(self) -> pd.DataFrame:
        """Return path, label, split, hospital and slide of the patches."""
        labelled = self.columns.label is not None
        numbers = ['node', 'x_coord', 'y_coord', 'center']
        numbers += ['tumor', 'split'] if labelled else []
        frame = _read(self.file, ['patient'], numbers)
        stem = 'patient_' + frame['patient'].str.zfill(3)
        stem += '_node_' + frame['node'].astype(str)
        corner = '_x_' + frame['x_coord'].astype(str)
        corner += '_y_' + frame['y_coord'].astype(str)
        rows = pd.DataFrame({'domain': frame['center']})
        rows['path'] = 'patches/' + stem + '/patch_' + stem + corner + '.png'
        # A slide shows a node; its own number may mean another one elsewhere.
        rows['place'] = stem
        # The file distinguishes training (0) from in-distribution validation (1);
        # hospitals that are held out override it.
        split = np.full(len(frame), 'train', dtype=object)
        if labelled:
            rows['label'] = frame['tumor']
            split[frame['split'] != 0] = 'id_val'
        split[frame['center'] == 1] = 'val'
        split[frame['center'] == 2] = 'test'
        rows['split'] = split if labelled else split + '_unlabeled'
        return rows


class IWildCam(CSVDataset):
    """Photographs of camera traps: 182 species, one of them 'empty'.

    It reads the folders `iwildcam_v2.0` and `iwildcam_unlabeled_v1.0` as WILDS lays
    them out. 'val' and 'test' are from other camera traps than 'train'; 'id_val' and
    'id_test' are from the same ones on other days. WILDS reports the macro F1 score of
    'test'. A domain is a camera trap. The classes are numbers if there is no
    `categories.csv`.

    Args:
        root: The folder of the split, or the one above.
        split: 'train', 'val', 'test', 'id_val' or 'id_test', or, without labels,
            'extra_unlabeled'.
        size: Side in pixels of the square images, stretched (WILDS takes 448); None
            leaves them as they are.
        download: Whether to fetch the archive of the split if it is not there. Its size
            is compared with the published one; no checksum is published.
        **table: Arguments of `CSVDataset` such as *on_error*.

    Raises:
        RuntimeError: If the archive cannot be fetched.
    """

    hint = _HINT
    num_classes = 182
    #: Archives of the labelled and of the unlabelled splits.
    archive = Archive(
        'iwildcam_v2.0',
        _BUNDLE.format('0x6313da2b204647e79a14b468131fcd64'),
        11_957_420_032,
    )
    unlabeled_archive = Archive(
        'iwildcam_unlabeled_v1.0',
        _BUNDLE.format('0xff56ea50fbf64aabbc4d09b2e8d50e18'),
        41_016_937_676,
    )
    labelled_splits = ('train', 'val', 'test', 'id_val', 'id_test')
    unlabelled_splits = ('extra_unlabeled',)

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: str = 'train',
        size: int | None = 224,
        download: bool = False,
        **table: Any,
    ) -> None:
        """Open the index, or build it."""
        check_choice('split', split, self.labelled_splits + self.unlabelled_splits)
        labelled = split in self.labelled_splits
        archive = self.archive if labelled else self.unlabeled_archive
        folder = _find_folder(os.fspath(root), archive, 'metadata.csv', download)
        label = 'label' if labelled else None
        super().__init__(
            folder,
            split,
            'metadata.csv',
            CSVColumns(label=label, domain='domain', place='place'),
            self._names(folder),
            size,
            stretch=True,
            bands=None,
            value_range=None,
            band_names=None,
            **table,
        )

    def _names(self, folder: str) -> tuple[str, ...]:
        """Return the names of the classes, or numbers if they are not known."""
        names = [str(label) for label in range(self.num_classes)]
        file = os.path.join(folder, 'categories.csv')
        if os.path.isfile(file):
            frame = _read(file, ['name'], ['y'])
            for label, name in zip(frame['y'], frame['name'], strict=True):
                # Species that are only in the competition have the number 99999.
                if 0 <= label < self.num_classes:
                    names[int(label)] = name
        return tuple(names)

    def read_rows(self) -> pd.DataFrame:
        """Return path, label, split and camera trap of the photographs.

        Raises:
            ValueError: If the file has a split that is not an official one.
        """
        if self.columns.label is None:
            frame = _read(self.file, ['uid'], ['location_remapped'])
            trap = frame['location_remapped']
            rows = pd.DataFrame({'path': 'images/' + frame['uid'] + '.jpg'})
            rows['domain'], rows['split'] = trap, 'extra_unlabeled'
            # Other camera traps than the labelled ones, whatever their numbers.
            rows['place'] = 'unlabelled camera trap ' + trap.astype(str)
            return rows
        names, numbers = ['split', 'filename'], ['location_remapped', 'y']
        frame = _read(self.file, names, numbers)
        unknown = frame['split'][~frame['split'].isin(self.labelled_splits)]
        if len(unknown):
            raise ValueError(
                f'{self.file} has the split {unknown.iloc[0]!r}: expected one of'
                f' {self.labelled_splits}'
            )
        trap = frame['location_remapped']
        # Photographs of all splits lie in the folder train.
        rows = pd.DataFrame({'path': 'train/' + frame['filename']})
        rows['label'], rows['split'] = frame['y'], frame['split']
        rows['domain'], rows['place'] = trap, 'camera trap ' + trap.astype(str)
        return rows


class GlobalWheat(CSVDataset):
    """Photographs of 1024 x 1024 pixels with a box around each head of wheat.

    It reads the folders `globalwheat_v1.1` and `globalwheat_unlabeled_v1.0` as WILDS
    lays them out. A domain is a session: one field on one day. WILDS reports the
    detection accuracy of 'test', averaged over its sessions.

    Args:
        root: The folder of the split, or the one above.
        split: 'train', 'val', 'test', 'id_val' or 'id_test', or, without boxes,
            'train_unlabeled', 'val_unlabeled', 'test_unlabeled' or 'extra_unlabeled'.
        size: Side in pixels of the images; None for the 1024 of the files.
        download: Whether to fetch the archive of the split if it is not there. Its size
            is compared with the published one; no checksum is published.
        **table: Arguments of `CSVDataset` such as *on_error*.

    Raises:
        RuntimeError: If the archive cannot be fetched.
    """

    classes = ('background', 'wheat head')
    hint = _HINT
    #: Archives of the labelled and of the unlabelled splits.
    archive = Archive(
        'globalwheat_v1.1',
        _BUNDLE.format('0x36e16907b7254571b708b725f8beae52'),
        10_284_949_504,
    )
    unlabeled_archive = Archive(
        'globalwheat_unlabeled_v1.0',
        _BUNDLE.format('0x59d4c1b8b7ad45cc83e080d11d1eaf94'),
        103_766_940_000,
    )
    #: CSV file by split.
    labelled_splits = {
        'train': 'official_train.csv',
        'val': 'official_val.csv',
        'test': 'official_test.csv',
        'id_val': 'fixed_train_val.csv',
        'id_test': 'fixed_train_test.csv',
    }
    unlabelled_splits = {
        f'{name}_unlabeled': f'official_{name}_unlabeled.csv'
        for name in ('train', 'val', 'test', 'extra')
    }

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: str = 'train',
        size: int | None = None,
        download: bool = False,
        **table: Any,
    ) -> None:
        """Open the index, or build it."""
        files = self.labelled_splits | self.unlabelled_splits
        check_choice('split', split, tuple(files))
        labelled = split in self.labelled_splits
        archive = self.archive if labelled else self.unlabeled_archive
        boxes = 'boxes' if labelled else None
        super().__init__(
            _find_folder(os.fspath(root), archive, files[split], download),
            split,
            files[split],
            CSVColumns(label=None, domain='domain', place='place', boxes=boxes),
            self.classes,
            size,
            stretch=True,
            bands=None,
            value_range=None,
            band_names=None,
            **table,
        )

    def read_rows(self) -> pd.DataFrame:
        """Return path, split, session and boxes of the photographs."""
        labelled = self.columns.boxes is not None
        names = ['image_name', 'BoxesString'] if labelled else ['image_name']
        frame = _read(self.file, names, ['domain'])
        rows = pd.DataFrame({'path': 'images/' + frame['image_name']})
        rows['split'], rows['domain'] = self.split, frame['domain']
        rows['place'] = 'session ' + frame['domain'].astype(str)
        if labelled:
            rows['boxes'] = frame['BoxesString']
        return rows
