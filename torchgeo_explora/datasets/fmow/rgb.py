"""Functional Map of the World, true colour."""

import math
import os
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.datasets.fmow.classes import CLASSES
from torchgeo_explora.datasets.fmow.index import (
    NO_BOX,
    NO_METADATA,
    check_index,
    open_index,
)
from torchgeo_explora.datasets.fmow.listing import split_folder
from torchgeo_explora.datasets.fmow.metadata import VIEW
from torchgeo_explora.datasets.fmow.regions import country_metadata
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.pixels.picture import (
    Region,
    cut,
    middle_square,
    move_boxes,
    open_picture,
)
from torchgeo_explora.datasets.tables.dataset import (
    NoSamplesError,
    OnError,
    TableDataset,
    Transform,
    check_choice,
    check_side,
)
from torchgeo_explora.datasets.tables.fetch import fetch_bucket
from torchgeo_explora.datasets.tables.metadata import (
    place_metadata,
    place_of,
    time_metadata,
)
from torchgeo_explora.datasets.tables.problems import ABSENT

#: Mean and standard deviation in [0, 1], as SatMAE gives them.
MEAN = (0.4182007312774658, 0.4214799106121063, 0.3991275727748871)
STD = (0.28774282336235046, 0.27541765570640564, 0.2764017581939697)
# Small objects get more context: (smallest share of the image's side, context as a
# multiple of the box's side).
_CONTEXT = ((0.5, 0.15), (0.4, 0.2), (0.3, 0.3), (0.2, 0.5), (0.1, 1.0), (0.0, 2.0))


class FMoWRGB(TableDataset):
    """fMoW in true colour: 62 classes of places, one label per image or box.

    Christie et al., *Functional Map of the World* (https://arxiv.org/abs/1711.07846).
    Layout, keys and order of the classes are those of TorchGeo's proposed data set
    (pull request 4020). SatMAE's CSV files can be read as well. The first start writes
    an index file, which later ones open.

    Cropping differs from the fMoW baseline: resizing is antialiased, and the width and
    height of a box are compared with those of its image (see `context_region`).

    Args:
        root: Folder of `train`, `val` and `test_gt` (or `test`).
        split: 'train', 'val' or 'test'.
        crop: 'box' gives one sample per bounding box, with the baseline's context,
            stretched to a square; 'image' gives one sample per image, with its shorter
            side resized and its centre cropped.
        size: Side in pixels of the square images returned; None returns the pixels as
            they are, in varying shapes.
        variant: 'rgb', or 'msrgb' for true colour made from the multispectral images.
        csv: A CSV file such as `train_62classes.csv` instead of the folders: label,
            path, time. Paths start at its folder. If its images are cut out already, as
            they often are, use `crop='image'`.
        index_dir: Folder of the index file; *root* (with *csv*: its folder) if None.
        max_missing: Largest share of listed samples that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' uses the next one.
        transforms: Applied to each sample.
        download: Whether to fetch 'train' or 'val' if its folder is not there, with the
            command `aws`, which verifies checksums itself. 'test' has no labels and
            must be sorted by its mapping file.

    Attributes:
        index: The table of all images.
        rows: Row of each sample in it.
        paths: Path of each sample.
        labels: Labels, (N,) int64.
        classes: The 62 names, alphabetical.

    Raises:
        NoSamplesError: If there is no sample; a DatasetNotFoundError.
        FileNotFoundError: If too many samples are missing.
        ValueError: If an argument or the CSV file is wrong.
        DependencyNotFoundError: If *download* needs `aws` and it is not installed.
    """

    url = 's3://spacenet-dataset/Hosted-Datasets/fmow/fmow-rgb'
    classes = CLASSES
    valid_splits = ('train', 'val', 'test')

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: Literal['train', 'val', 'test'] = 'train',
        crop: Literal['box', 'image'] = 'box',
        size: int | None = None,
        variant: Literal['rgb', 'msrgb'] = 'rgb',
        csv: str | os.PathLike[str] | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
        download: bool = False,
    ) -> None:
        """Open the index, or build it."""
        check_choice('split', split, self.valid_splits)
        check_choice('crop', crop, ('box', 'image'))
        check_choice('variant', variant, ('rgb', 'msrgb'))
        check_side(size)
        self.root = os.fspath(root)
        self.split = split
        self.crop = crop
        self.size = size
        place = None if csv is None else os.fspath(csv)
        if download:
            self._download(variant, place)
        self.index, self.base = open_index(
            self.root,
            split,
            variant,
            place,
            None if index_dir is None else os.fspath(index_dir),
        )
        what = f'split {split!r} of fMoW in {place or self.root}'
        losing = (ABSENT, NO_BOX, NO_METADATA) if crop == 'box' else (ABSENT,)
        check_index(self.index, losing, max_missing, what)
        self.rows, self._boxes, self.labels = self._select()
        if not len(self.rows):
            raise NoSamplesError(
                f'{what} has no image with a bounding box: pass crop="image", or put'
                f' the JSON files beside the images'
            )
        super().__init__(len(self.rows), what, on_error, transforms)

    def _download(self, variant: str, csv: str | None) -> None:
        folder = split_folder(self.root, self.split)
        if csv is not None or (self.split == 'test' and not os.path.isdir(folder)):
            raise ValueError(
                "*download* fetches the folders 'train' and 'val': leave out *csv*, and"
                " sort the release's test images into class folders by its mapping file"
            )
        if not os.path.isdir(folder):
            files = (f'*_{variant}.jpg', f'*_{variant}.json')
            fetch_bucket(f'{self.url}/{self.split}', folder, files)

    def _select(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
        """Return the image of each sample, the number of its box, and its label."""
        table = self.index.table
        if self.crop == 'image':
            rows = np.arange(table.num_rows)
            labels = table['label'].to_numpy()
            return rows, rows, torch.from_numpy(labels.astype(np.int64))
        labels = pc.list_flatten(table['box_labels']).to_numpy()
        rows = pc.list_parent_indices(table['box_labels']).to_numpy()
        boxes = np.flatnonzero(labels >= 0)
        return rows[boxes], boxes, torch.from_numpy(labels[boxes].astype(np.int64))

    def path(self, index: int) -> str:
        """Return the path of a sample."""
        row = int(self.rows[index])
        return os.path.join(self.base, self.index.table['path'][row].as_py())

    @property
    def paths(self) -> list[str]:
        """Path of each sample."""
        names = self.index.table['path'].take(self.rows)
        return [os.path.join(self.base, name) for name in names.to_pylist()]

    @property
    def places(self) -> list[str]:
        """Longitude and latitude of each sample to 3 decimals, '' if unknown."""
        return self.index.table['place'].take(self.rows).to_pylist()

    def read(self, index: int) -> dict[str, Any]:
        """Return image, label, box and path.

        `image` is (3, H, W), 0 to 255; `bbox_xyxy` (N, 4) float32, both corners in
        the pixels of the image returned; `label` 0-d long; `path`; and `metadata`.
        """
        row = int(self.rows[index])
        table, path = self.index.table, self.path(index)
        boxes = table['boxes'][row].as_py()
        with open_picture(path) as image:
            width, height = image.size
            if self.crop == 'box':
                first = table['boxes'].chunk(0).offsets[row].as_py()
                boxes = [boxes[int(self._boxes[index]) - first]]
                region = context_region(tuple(boxes[0]), width, height)
                if region is None:
                    raise UnreadableImageError(
                        f'box {boxes[0]} of {path} lies outside its {width} x'
                        f' {height} pixels. Replace the file'
                    )
            elif self.size is None:
                region = (0, 0, width, height)
            else:
                region = middle_square(width, height)
            size = None if self.size is None else (self.size, self.size)
            pixels = cut(image, region, size)
        corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return {
            'image': pixels,
            'label': torch.tensor(int(self.labels[index])),
            'bbox_xyxy': move_boxes(
                corners, region, (pixels.shape[1], pixels.shape[2])
            ),
            'path': path,
            **self.metadata(row),
        }

    def metadata(self, row: int) -> dict[str, Tensor]:
        """Return what is known about an image, by key; all values are 0-d.

        Time and place, as in other data sets; `country` and `sub_region`, numbers of
        `COUNTRIES` and `SUB_REGIONS`, -1 if unknown; and `gsd` (metres), `cloud_cover`
        (percent), `sun_elevation` and `off_nadir` (degrees), NaN if unknown.

        Args:
            row: Row of the index.
        """
        table = self.index.table
        return {
            **time_metadata(table['timestamp'][row].as_py()),
            **place_metadata(*place_of(table['place'][row].as_py())),
            **country_metadata(table['country'][row].as_py()),
            **{name: _number(table[name][row].as_py()) for name in VIEW},
        }


def _number(value: float | None) -> Tensor:
    return torch.tensor(math.nan if value is None else value)


def context_region(
    box: tuple[int, int, int, int], width: int, height: int
) -> Region | None:
    """Return a box with the context that the fMoW baseline gives it.

    Half of the context, rounded down, is added at each end, and the result is clipped
    to the image. The baseline divides the box's width by the image's height and its
    height by the image's width; here width is divided by width, height by height.

    Args:
        box: (x, y, w, h) in pixels.
        width: Width of the image.
        height: Height of the image.

    Returns:
        The region in whole pixels, or None if it does not touch the image.
    """
    x, y, box_width, box_height = box
    across = _padding(box_width, width)
    down = _padding(box_height, height)
    left, right = max(x - across, 0), min(x + box_width + across, width)
    top, bottom = max(y - down, 0), min(y + box_height + down, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _padding(side: int, whole: int) -> int:
    share = side / whole
    return int(side * next(times for least, times in _CONTEXT if share >= least) / 2)
