"""Images that a CSV file lists, with labels, splits and domains."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.datasets.pixels.figure import true_colour
from torchgeo_explora.datasets.pixels.picture import move_boxes
from torchgeo_explora.datasets.pixels.reader import ImageReader, StretchedReader
from torchgeo_explora.datasets.pixels.scaling import to_unit
from torchgeo_explora.datasets.tables.dataset import (
    NoSamplesError,
    OnError,
    TableDataset,
    Transform,
    check_side,
)
from torchgeo_explora.datasets.tables.index_file import (
    TableFile,
    file_stamp,
    index_path,
    look_up,
    read_csv,
)
from torchgeo_explora.datasets.tables.problems import ABSENT, with_notes

# Columns of the index, in their order; those of metadata follow, with a prefix.
_COLUMNS = ('path', 'label', 'split', 'domain', 'place', 'boxes')
_METADATA = 'metadata: '
# Keys of a sample other than its metadata.
_KEYS = {'image', 'path', 'label', 'domain', 'index', 'bbox_xyxy', 'mask'}
# The number that stands for an empty field.
_EMPTY = np.iinfo(np.int64).min
# Larger numbers are cut to this one: beyond it, a float skips whole numbers.
_MOST = 2**53
# Limit on the number of classes that have numbers instead of names.
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class CSVColumns:
    """Names of the columns of a CSV file of images; None if there is no such column.

    Args:
        path: Path of the image, from *root*.
        label: Class of the image, a name or a number from 0. A split whose labels are
            all empty has no labels.
        split: Split of the image. Without it, every image is in 'train'.
        domain: What to group results by, such as a hospital or a sensor: names or whole
            numbers.
        place: What splits must not share, such as a patient or a location.
        boxes: Boxes of objects of one class, in pixels: `x1 y1 x2 y2;x1 y1 x2 y2`, or
            `no_box`.
        metadata: Further columns, which samples have under the same names. Numbers are
            NaN if a field is empty; whole numbers stay whole, and are -1 if empty;
            names are numbered from 0 in alphabetical order, and are -1 if empty.
    """

    path: str = 'path'
    label: str | None = 'label'
    split: str | None = 'split'
    domain: str | None = None
    place: str | None = None
    boxes: str | None = None
    metadata: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that no column of metadata hides another key of a sample."""
        object.__setattr__(self, 'metadata', tuple(self.metadata))
        if taken := {*self.metadata} & _KEYS:
            raise ValueError(
                f'*metadata* names {", ".join(sorted(taken))}, which a sample has'
                ' already: rename the column'
            )

    def by_name(self) -> dict[str, str | None]:
        """Return the name of each column in the file, by its name in the index."""
        named = {name: getattr(self, name) for name in _COLUMNS}
        return named | {_METADATA + name: name for name in self.metadata}


#: The usual names.
COLUMNS = CSVColumns()


class CSVDataset(TableDataset):
    """JPEG, PNG, TIFF and GeoTIFF images that a CSV file lists, one in each row.

    The first start writes an index file beside the CSV file, which later ones open.
    Paths are relative to *root*, or absolute and inside it.

    Args:
        root: Folder that the paths start at.
        split: Name in the column of splits.
        csv: The CSV file, from *root*.
        columns: Names of its columns.
        classes: Class names in the order of the labels. By default the names in the
            file in alphabetical order, or the numbers up to the largest one.
        size: Side in pixels of the square images: the shorter side is resized to it
            (bilinear, antialiased) and the centre is cropped. Needed if the images
            differ in size; None returns them as they are.
        stretch: Whether to read pictures as 8-bit red, green and blue, and to stretch
            them to *size* instead of cropping them.
        bands: Bands to return and their order: numbers from 1, or names as in the band
            descriptions ('red', 'green', 'blue' in JPEG and PNG). All by default; the
            attribute *bands* has their names.
        value_range: (low, high) of the sensor values, each one number, or one per band.
            The default follows the stored type, as for `ImageFolder`.
        band_names: Names of the bands in every file, in their order, if the files do
            not name them.
        upright: Whether to turn JPEG, PNG and WebP as their EXIF orientation says;
            boxes are in pixels of the upright image. Not with *stretch*.
        max_pixels: Pixels of the largest image that is read, as for `ImageFolder`.
        index_dir: Folder of the index file; that of the CSV file by default.
        max_missing: Largest share of listed files that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' uses the next one.
        transforms: Applied to each sample.

    Attributes:
        paths: Path of each sample.
        labels: Labels, (N,) int64, or None.
        domains: Numbers of the domains, (N,) int64, -1 if empty, or None.
        domain_names: Names of the domains in the order of their numbers; empty if the
            file has numbers.
        places: A name for the place of each sample, '' if unknown.
        metadata: Values of the further columns by name, (N,) each.
        range_known: Whether *value_range* is certain: given, or not of 16-bit values.
        no_data: Value of pixels without data, in all bands, or None.

    Raises:
        NoSamplesError: If there is no CSV file or no such split; a
            DatasetNotFoundError.
        FileNotFoundError: If too many images are missing.
        UnreadableImageError: If the first image cannot be read and *on_error* is
            'raise', or if none can.
        ValueError: If an argument is wrong, or the CSV file lacks columns, lists an
            image twice or outside *root*, or has labels for only part of a split.
    """

    #: What to do if there is no CSV file.
    hint = '*csv* must name a CSV file in *root*'

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: str = 'train',
        csv: str = 'metadata.csv',
        columns: CSVColumns = COLUMNS,
        classes: Sequence[str] | None = None,
        size: int | None = None,
        stretch: bool = False,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float]
        | tuple[Sequence[float], Sequence[float]]
        | None = None,
        band_names: Sequence[str] | None = None,
        upright: bool = True,
        max_pixels: int | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
    ) -> None:
        """Open the index, or build it, and pick the rows of the split."""
        check_side(size)
        if stretch and (bands, value_range, band_names) != (None, None, None):
            raise ValueError(
                '*stretch* reads red, green and blue from 0 to 255: leave out *bands*,'
                ' *value_range* and *band_names*'
            )
        self.root, self.split, self.size = os.fspath(root), split, size
        self.columns = columns
        self.file = os.path.join(self.root, csv)
        self.index = self._open_index(index_dir)
        self.index.check_missing(max_missing, self.file)
        self.rows = self._select()
        what = f'split {split!r} of {self.file}'
        super().__init__(len(self.rows), what, on_error, transforms)
        self.labels = self._labels(classes, what)
        self.domains: Tensor | None = None
        self.domain_names: tuple[str, ...] = ()
        if columns.domain is not None:
            codes, self.domain_names = _numbered(self.index.table['domain'])
            codes = np.where(codes == _EMPTY, -1, codes)[self.rows]
            self.domains = torch.from_numpy(codes)
        self.metadata = {
            name: _values(self.index.table[_METADATA + name])[self.rows]
            for name in columns.metadata
        }
        self.reader = (
            StretchedReader(size, max_pixels)
            if stretch
            else ImageReader(size, bands, value_range, band_names, upright, max_pixels)
        )
        self.settle(self.reader, self.path)
        self.bands, self.value_range = self.reader.bands, self.reader.value_range
        self.range_known, self.no_data = self.reader.range_known, self.reader.no_data
        # The usual ranges of 8-bit and float values are certain and need no check.
        if value_range is not None or not self.range_known:
            self.warn_of_dark_images(self.value_range)

    def read_rows(self) -> pd.DataFrame:
        """Return the rows of the CSV file, with the columns that are named.

        A recipe for a published file converts that file's columns here.

        Raises:
            ValueError: If a column is missing, or a path is empty, outside *root* or
                listed twice.
        """
        named = [name for name in self.columns.by_name().values() if name is not None]
        hint = '. Name them in *columns*, or pass None for what the file does not have'
        # As text: '004' is a name, and numbers must not become fractions.
        text = dict.fromkeys(named, pa.string())
        frame = read_csv(self.file, named, text, hint).to_pandas()
        column = self.columns.path
        frame[column] = self._relative(frame[column].str.strip())
        return frame

    def _relative(self, paths: pd.Series) -> pd.Series:
        """Return paths from *root*, no two of the same file."""
        paths = paths.str.replace('\\', '/').str.removeprefix('./')
        for row in np.flatnonzero(paths == '').tolist():
            raise ValueError(
                f'row {row + 1} of {self.file} has no path: expected one in the column'
                f' {paths.name!r}'
            )
        for row in np.flatnonzero(paths.str.contains(r'^/|\.\.|//|/\./')).tolist():
            path = os.path.relpath(os.path.join(self.root, paths[row]), self.root)
            if path.startswith('..'):
                raise ValueError(
                    f'row {row + 1} of {self.file} has the path {paths[row]!r}, which'
                    f' is outside of {self.root}: make *root* a folder above all images'
                )
            paths.iloc[row] = path
        for row in np.flatnonzero(paths.duplicated()).tolist():
            first = np.flatnonzero(paths == paths[row])[0]
            raise ValueError(
                f'rows {first + 1} and {row + 1} of {self.file} have the same path'
                f' {paths[row]!r}: list each image once'
            )
        return paths

    def _open_index(self, index_dir: str | os.PathLike[str] | None) -> TableFile:
        """Open the index, or build it.

        Raises:
            NoSamplesError: If there is no CSV file.
        """
        if not os.path.isfile(self.file):
            raise NoSamplesError(f'there is no {self.file}: {self.hint}')
        folder, name = os.path.split(self.file)
        place = None if index_dir is None else os.fspath(index_dir)
        path = index_path(folder, name, place)
        columns = self.columns.by_name()
        source = {
            'csv': [os.path.abspath(self.file), *file_stamp(self.file)],
            'root': os.path.abspath(self.root),
            'columns': columns,
            'version': 3,
        }

        def build() -> pa.Table:
            frame = self.read_rows()
            texts = {
                name: [''] * len(frame)
                if column is None
                else frame[column].fillna('').astype(str).str.strip()
                for name, column in columns.items()
            }
            rows = pd.DataFrame(texts, dtype=str)
            if self.columns.split is None:
                rows['split'] = 'train'
            if self.columns.boxes is not None:
                rows['boxes'].map(parse_boxes)
            exists, _ = look_up(self.root, rows['path'])
            problems = [(path, ABSENT) for path in rows['path'][~exists.to_numpy()]]
            kept = rows[exists.to_numpy()]
            schema = pa.schema(dict.fromkeys(columns, pa.string()))
            table = pa.Table.from_pandas(kept, schema, preserve_index=False)
            return with_notes(table, problems, len(rows), path)

        return TableFile(path, source, build)

    def _select(self) -> NDArray[np.int64]:
        """Return the rows of the split.

        Raises:
            NoSamplesError: If there are none.
        """
        splits = self.index.table['split']
        rows = np.flatnonzero(pc.equal(splits, self.split).to_numpy())
        if not len(rows):
            counts = pc.value_counts(splits).to_pylist()
            found = [f'{count["values"]!r} ({count["counts"]})' for count in counts]
            raise NoSamplesError(
                f'split {self.split!r} of {self.file} has no sample: the splits with'
                f' samples are {", ".join(found) or "none"}'
            )
        return rows

    def _labels(self, classes: Sequence[str] | None, what: str) -> Tensor | None:
        """Return the labels of the split, and name the classes.

        Raises:
            ValueError: If some are missing, or are not among the classes.
        """
        if self.columns.boxes is not None:
            if self.columns.label is not None:
                raise ValueError(
                    '*columns* has both boxes and label: boxes are of one class, so'
                    ' pass label=None'
                )
            self.classes = classes or ('background', 'object')
            return None
        if self.columns.label is None:
            self.classes = classes or ()
            return None
        codes, names = _numbered(self.index.table['label'], classes)
        largest = int(codes.max(initial=-1))
        if not names and classes is None and largest >= _MOST_CLASSES:
            raise ValueError(
                f'{what} has labels up to {largest}: expected numbers from 0, below'
                f' {_MOST_CLASSES}. Correct the CSV file, or give *classes*'
            )
        self.classes = classes or names or tuple(map(str, range(largest + 1)))
        labels, last = codes[self.rows], len(self.classes) - 1
        empty = labels == _EMPTY
        if empty.all():
            return None
        if empty.any():
            raise ValueError(
                f'{what} has {empty.sum()} images without a label, such as'
                f' {self.path(int(empty.argmax()))}: fill in the column'
                f' {self.columns.label!r}, or pass label=None in *columns*'
            )
        wrong = (labels < 0) | (labels > last)
        if wrong.any():
            row = int(self.rows[wrong.argmax()])
            text = self.index.table['label'][row].as_py()
            raise ValueError(
                f'{what} has the label {text}: expected numbers from 0 to {last}, or'
                f' the names in *classes*. Correct the CSV file'
            )
        return torch.from_numpy(labels)

    def path(self, index: int) -> str:
        """Return the path of a sample."""
        name = self.index.table['path'][int(self.rows[index])].as_py()
        return os.path.join(self.root, name)

    @property
    def paths(self) -> list[str]:
        """Path of each sample."""
        names = self.index.table['path'].take(self.rows)
        return [os.path.join(self.root, name) for name in names.to_pylist()]

    @property
    def places(self) -> list[str]:
        """A name for the place of each sample, '' if unknown."""
        return self.index.table['place'].take(self.rows).to_pylist()

    def read(self, index: int) -> dict[str, Any]:
        """Return an image.

        `image` is (C, H, W) in sensor values; `path`; if the file has them, `label` and
        `domain`, 0-d long, and the metadata, 0-d; if it has boxes, `bbox_xyxy` (N, 4)
        float32, both corners in pixels of the image returned, and `label` (N,) long,
        all 1.
        """
        path = self.path(index)
        image, region = self.reader.read(path)
        sample: dict[str, Any] = {'image': image, 'path': path}
        if self.domains is not None:
            sample['domain'] = torch.tensor(int(self.domains[index]))
        sample |= {name: values[index] for name, values in self.metadata.items()}
        if self.labels is not None:
            sample['label'] = torch.tensor(int(self.labels[index]))
        if self.columns.boxes is not None:
            text = self.index.table['boxes'][int(self.rows[index])].as_py()
            boxes = torch.tensor(parse_boxes(text), dtype=torch.float32).view(-1, 4)
            boxes = move_boxes(boxes, region, (image.shape[1], image.shape[2]))
            sample['bbox_xyxy'] = boxes
            sample['label'] = torch.ones(len(boxes), dtype=torch.long)
        return sample

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue if the bands are named so, else the first three.

        Images of one or two bands become one band of gray.
        """
        return true_colour(to_unit(image, self.value_range), self.bands)


def _numbered(
    column: pa.ChunkedArray, names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return texts as numbers, and their names in this order.

    Whole numbers are kept and have no names. Others are numbered in the order of
    *names*, or in alphabetical order; a text that is not among *names* becomes -1, an
    empty one `_EMPTY`.
    """
    found = column.combine_chunks().dictionary_encode()
    texts: list[str] = found.dictionary.to_pylist()
    filled = sorted(set(texts) - {''})
    numbers = pd.to_numeric(pd.Series(filled, dtype=str), errors='coerce')
    whole = bool((numbers % 1 == 0).all())
    names = tuple(filled if names is None else names)
    order = {name: i for i, name in enumerate(names)}
    codes = {'': _EMPTY} | {
        text: int(np.clip(number, -_MOST, _MOST)) if whole else order.get(text, -1)
        for text, number in zip(filled, numbers, strict=True)
    }
    table = np.array([codes[text] for text in texts], np.int64)
    return table[found.indices.to_numpy()], () if whole else names


def _values(column: pa.ChunkedArray) -> Tensor:
    """Return a column of metadata as one number for each row."""
    texts = pd.Series(column.to_pylist(), dtype=str)
    numbers = pd.to_numeric(texts, errors='coerce')
    filled = texts != ''
    if numbers[filled].notna().all() and (numbers[filled] % 1 != 0).any():
        return torch.from_numpy(numbers.to_numpy(np.float32))
    codes, _ = _numbered(column)
    return torch.from_numpy(np.where(codes == _EMPTY, -1, codes))


def parse_boxes(text: str) -> list[list[float]]:
    """Return the boxes of a CSV field such as '0 10 50 70;20 30 40 60' or 'no_box'.

    Raises:
        ValueError: If a box does not have four numbers.
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
