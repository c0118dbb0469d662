"""NAIP tiles with land-cover labels, as SatMAE lays them out."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from torchgeo_explora.datasets.pixels.figure import pick_bands
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError, naming
from torchgeo_explora.datasets.pixels.picture import fit_square
from torchgeo_explora.datasets.tables.dataset import (
    NoSamplesError,
    OnError,
    TableDataset,
    Transform,
    check_choice,
    check_side,
)
from torchgeo_explora.datasets.tables.problems import check_missing, write_report

#: Mean and standard deviation of red, green and blue in [0, 1], as SatMAE gives them.
MEAN = (0.47996818, 0.47633689, 0.42402868)
STD = (0.17774512, 0.13703743, 0.11909943)
BANDS = ('red', 'green', 'blue', 'nir')
# Codes in the file of splits.
_SPLITS = {'train': (0,), 'val': (1,), 'test': (2,), 'val+test': (1, 2)}
_ABSENT = 'absent tiles'


class NAIPLandCover(TableDataset):
    """Aerial tiles of California with their land cover: 66 classes.

    The data of Tile2Vec (Jean et al., https://arxiv.org/abs/1805.02855), in the layout
    that SatMAE reads: tile i is `<i>tile.npy`, (H, W, bands) of bytes, and two arrays
    give the codes of its land cover and of its split. The classes are the codes that
    occur, in ascending order.

    Args:
        root: Folder of the arrays and of the tiles' folder.
        split: 'train', 'val' or 'test'; 'val+test' is what SatMAE evaluates on.
        bands: Bands to return and their order, of 'red', 'green', 'blue' and 'nir'.
        size: Side in pixels of the images; None leaves them as they are (50).
        tiles: Name of the tiles' folder.
        labels: Name of the array of codes, (N,); as an attribute, labels from 0, (N,)
            int64.
        splits: Name of the array of splits, (N,): 0, 1 or 2.
        index_dir: Folder of the report of missing tiles; *root* if None.
        max_missing: Largest share of tiles that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable tile, 'skip' uses the next one.
        transforms: Applied to each sample.

    Attributes:
        classes: The codes as text.

    Raises:
        NoSamplesError: If there is no tile; a DatasetNotFoundError.
        FileNotFoundError: If too many tiles are missing.
        ValueError: If an argument is wrong, or the arrays do not fit.
    """

    rgb_bands = ('red', 'green', 'blue')
    all_bands = BANDS

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: Literal['train', 'val', 'test', 'val+test'] = 'train',
        bands: Sequence[str] = ('red', 'green', 'blue'),
        size: int | None = 224,
        tiles: str = 'supervised_50_100',
        labels: str = 'y_50_100.npy',
        splits: str = 'splits.npy',
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
    ) -> None:
        """Read the two arrays and list the tiles."""
        check_choice('split', split, tuple(_SPLITS))
        check_side(size)
        self.bands = tuple(bands)
        if not self.bands:
            raise ValueError(f'*bands* is empty: name some of {BANDS}')
        for name in self.bands:
            check_choice('bands', name, BANDS)
        self.root, self.split, self.size = os.fspath(root), split, size
        self.folder = os.path.join(self.root, tiles)
        codes = _load(os.path.join(self.root, labels))
        parts = _load(os.path.join(self.root, splits))
        if codes.shape != parts.shape or codes.ndim != 1:
            raise ValueError(
                f'{labels} has shape {codes.shape} and {splits} {parts.shape} in'
                f' {self.root}: both must have one number for each tile'
            )
        values, classes = np.unique(codes, return_inverse=True)
        self.classes = tuple(str(value) for value in values)
        listed = np.flatnonzero(np.isin(parts, _SPLITS[split]))
        here = set(os.listdir(self.folder)) if os.path.isdir(self.folder) else set()
        present = np.array([f'{i}tile.npy' in here for i in listed], dtype=bool)
        what = f'split {split!r} of NAIP in {self.root}'
        if not present.any():
            raise NoSamplesError(
                f'{what} has no tile: expected <number>tile.npy in {self.folder}'
            )
        absent = [f'{i}tile.npy' for i in listed[~present]]
        report = os.path.join(
            self.root if index_dir is None else os.fspath(index_dir),
            f'.naip_{split}.report.csv',
        )
        check_missing(
            {_ABSENT: len(absent)} if absent else {},
            len(listed),
            max_missing,
            what,
            absent[0] if absent else None,
            write_report([(name, _ABSENT) for name in absent], report),
        )
        self.tiles = listed[present]
        self.labels = torch.from_numpy(classes[self.tiles].astype(np.int64))
        super().__init__(len(self.tiles), what, on_error, transforms)

    @property
    def paths(self) -> list[str]:
        """Path of each sample."""
        return [os.path.join(self.folder, f'{tile}tile.npy') for tile in self.tiles]

    def read(self, index: int) -> dict[str, Any]:
        """Return a tile.

        `image` is (C, H, W), 0 to 255; `label` 0-d long; `path`.
        """
        path = os.path.join(self.folder, f'{self.tiles[index]}tile.npy')
        with naming(path):
            pixels = np.load(path, allow_pickle=False)
        shape = getattr(pixels, 'shape', None)
        kind = getattr(pixels, 'dtype', np.dtype(object))
        # Tile2Vec's tiles may have a land cover map after near infrared.
        numbers = kind.kind in 'uif' and pixels.ndim == 3 and pixels.size > 0
        if not numbers or not 3 <= pixels.shape[-1] <= 5:
            raise UnreadableImageError(
                f'{path} has shape {shape} of type {kind}, expected (H, W, bands) of'
                f' numbers from 0 to 255, red, green and blue first. Replace the file'
            )
        wanted = [BANDS.index(name) for name in self.bands]
        if max(wanted) >= pixels.shape[-1]:
            raise UnreadableImageError(
                f'{path} has {pixels.shape[-1]} bands and no near infrared. Replace'
                f' the file'
            )
        image = torch.from_numpy(
            np.ascontiguousarray(pixels[..., wanted].transpose(2, 0, 1), np.float32)
        )
        return {
            'image': image if self.size is None else fit_square(image, self.size),
            'label': torch.tensor(int(self.labels[index])),
            'path': path,
        }

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue in [0, 1]."""
        return pick_bands(image / 255, self.bands, self.rgb_bands)


def _load(path: str) -> Any:
    if not os.path.isfile(path):
        raise NoSamplesError(
            f'there is no {path}: *root* must hold the arrays of labels and splits, and'
            f' the folder of tiles'
        )
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f'{path} is not an array of numbers ({error})') from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f'{path} is not an array of numbers: it holds several')
    return array
