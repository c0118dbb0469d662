"""What the data sets of the WILDS benchmark share."""

import glob
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from torchgeo_explora.datasets.pixels.picture import cut, open_picture
from torchgeo_explora.datasets.tables.dataset import (
    NoSamplesError,
    OnError,
    TableDataset,
    Transform,
    check_size,
)
from torchgeo_explora.datasets.tables.fetch import Archive, fetch_archive
from torchgeo_explora.datasets.tables.index_file import (
    TableFile,
    index_path,
    look_up,
    read_csv,
    whole_numbers,
)
from torchgeo_explora.datasets.tables.problems import ABSENT, judge, tally, write_report

#: Columns of every index.
SCHEMA = pa.schema(
    {
        'path': pa.string(),
        'split': pa.string(),
        'label': pa.int32(),
        'domain': pa.int32(),
        'place': pa.string(),
        'boxes': pa.string(),
    }
)


#: Address of an archive of WILDS by its number, as in the source of its own package. No
#: checksum is published.
BUNDLE = 'https://worksheets.codalab.org/rest/bundles/{}/contents/blob/'


def find_folder(root: str, archive: Archive, csv: str, download: bool) -> str:
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


def open_wilds_index(
    folder: str,
    csv: str,
    columns: Sequence[str],
    numbers: Sequence[str],
    describe: Callable[[pd.DataFrame], pd.DataFrame],
    index_dir: str | None,
) -> TableFile:
    """Open the index of a CSV file of WILDS, or build it.

    Args:
        folder: Folder of the data set.
        csv: Name of the file in it.
        columns: Columns that it must have.
        numbers: Those of them that hold whole numbers.
        describe: Returns ``path`` (in *folder*) and what else of ``SCHEMA`` is known.
        index_dir: Folder of the index; *folder* if None.

    Returns:
        A table with ``SCHEMA`` of the files that exist, in the order of the rows, with
        the notes ``listed``, ``counts``, ``example`` and ``report``.

    Raises:
        NoSamplesError: If there is no CSV file.
        ValueError: If it lacks columns or numbers.
    """
    file = os.path.join(folder, csv)
    if not os.path.isfile(file):
        raise NoSamplesError(
            f'there is no {file}: pass download=True, or make *root* a WILDS data set'
            f' as its own package downloads it (https://wilds.stanford.edu), or the'
            f' folder above'
        )
    status = os.stat(file)
    source = {
        'csv': [os.path.abspath(file), status.st_size, status.st_mtime_ns],
        'version': 2,
    }
    path = index_path(folder, csv, index_dir)

    def build() -> pa.Table:
        # '004' is a name, no number.
        table = read_csv(file, columns, {'patient': pa.string()})
        frame = table.to_pandas()
        for name in numbers:
            frame[name] = whole_numbers(file, frame[name])
        frame = describe(frame)
        exists, _ = look_up(folder, frame['path'])
        problems = [(name, ABSENT) for name in frame['path'][~exists.to_numpy()]]
        kept = frame[exists.to_numpy()]
        empty: dict[str, Any] = {'split': '', 'label': -1, 'domain': -1}
        empty |= {'place': '', 'boxes': ''}
        values: dict[str, Any] = {
            name: kept[name] if name in kept else [empty[name]] * len(kept)
            for name in SCHEMA.names
        }
        notes = {
            'listed': len(frame),
            'counts': tally(problems),
            'example': problems[0][0] if problems else None,
            'report': write_report(problems, f'{path}.report.csv'),
        }
        return pa.table(values, schema=SCHEMA).replace_schema_metadata(
            {name: json.dumps(value) for name, value in notes.items()}
        )

    return TableFile(path, source, build)


class WILDSDataset(TableDataset):
    """Images of one split of a WILDS data set, with their domains.

    Koh et al., *WILDS* (https://arxiv.org/abs/2012.07421); unlabelled splits: Sagawa et
    al. (https://arxiv.org/abs/2112.05090).

    Args:
        index: The index, of one split or all.
        base: Folder that its paths start at.
        split: Name of the split.
        size: Side in pixels of the square images, stretched as WILDS does; None leaves
            them as they are.
        max_missing: Largest share of listed files that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' takes the next one.
        transforms: Applied to each sample.

    Attributes:
        paths: Path of each sample.
        labels: Labels, (N,) int64, or None.
        domains: What WILDS groups by, (N,) int64.
        places: A name for the place of each sample.
    """

    def __init__(
        self,
        index: TableFile,
        base: str,
        split: str,
        size: int | None,
        max_missing: float,
        on_error: OnError,
        transforms: Transform | None,
    ) -> None:
        """Pick the rows of the split."""
        check_size(size)
        self.index, self.base, self.split, self.size = index, base, split, size
        what = f'split {split!r} of {base}'
        with index.kept_if_accepted():
            judge(
                index.note('counts'),
                index.note('listed'),
                max_missing,
                base,
                index.note('example'),
                index.note('report'),
            )
        names = index.table['split'].to_numpy(zero_copy_only=False)
        self.rows: NDArray[np.int64] = np.flatnonzero(names == split)
        self.domains = self._integers('domain')
        labels = self._integers('label')
        # -1 marks splits without labels.
        self.labels = None if bool((labels == -1).all()) else labels
        super().__init__(len(self.rows), what, on_error, transforms)
        last = len(self.classes) - 1
        wrong = labels[(labels < 0) | (labels > last)]
        if self.labels is not None and len(wrong):
            raise ValueError(
                f'{what} has the label {wrong[0]}: expected numbers from 0 to {last}.'
                f' Correct the CSV file'
            )

    def _integers(self, name: str) -> torch.Tensor:
        values = self.index.table[name].to_numpy()[self.rows]
        return torch.from_numpy(values.astype(np.int64))

    def path(self, index: int) -> str:
        """Return the path of a sample."""
        name = self.index.table['path'][int(self.rows[index])].as_py()
        return os.path.join(self.base, name)

    @property
    def paths(self) -> list[str]:
        """Path of each sample."""
        names = self.index.table['path'].take(self.rows)
        return [os.path.join(self.base, name) for name in names.to_pylist()]

    @property
    def places(self) -> list[str]:
        """A name for the place of each sample."""
        return self.index.table['place'].take(self.rows).to_pylist()

    def read(self, index: int) -> dict[str, Any]:
        """Return an image with its domain.

        ``image`` is (3, H, W), 0 to 255; ``domain`` 0-d long; ``label`` 0-d long where
        the split has labels; ``path``.
        """
        path = self.path(index)
        with open_picture(path) as image:
            size = None if self.size is None else (self.size, self.size)
            pixels = cut(image, (0, 0, *image.size), size)
            width, height = image.size
        return {
            'image': pixels,
            'domain': torch.tensor(int(self.domains[index])),
            'path': path,
            **self.targets(index, width, height),
        }

    def targets(self, index: int, width: int, height: int) -> dict[str, torch.Tensor]:
        """Return what is to be predicted of an image.

        Args:
            index: Number of the sample.
            width: Of the file's image, in pixels.
            height: Likewise.
        """
        if self.labels is None:
            return {}
        return {'label': torch.tensor(int(self.labels[index]))}
