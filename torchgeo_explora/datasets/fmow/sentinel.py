"""fMoW-Sentinel: the places of fMoW, seen by Sentinel-2."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchgeo.datasets.utils import download_url

from torchgeo_explora.augment.bands import band_indices, spell_band
from torchgeo_explora.datasets.fmow.classes import CLASSES
from torchgeo_explora.datasets.fmow.sentinel_index import open_sentinel_index
from torchgeo_explora.datasets.pixels import sentinel2
from torchgeo_explora.datasets.pixels.figure import pick_bands
from torchgeo_explora.datasets.pixels.image_file import ImageFile, UnreadableImageError
from torchgeo_explora.datasets.pixels.picture import fit_square
from torchgeo_explora.datasets.pixels.scaling import to_unit
from torchgeo_explora.datasets.tables.dataset import (
    NoSamplesError,
    OnError,
    TableDataset,
    Transform,
    check_choice,
    check_side,
)
from torchgeo_explora.datasets.tables.fetch import Archive, fetch_archive
from torchgeo_explora.datasets.tables.metadata import (
    place_metadata,
    place_of,
    time_metadata,
)

# Names of the splits in files and folders.
_SPLITS = {'train': 'train', 'val': 'val', 'test': 'test_gt'}


class FMoWSentinel(TableDataset):
    """fMoW-Sentinel: 62 classes, 13 Sentinel-2 bands, several images per place.

    Cong et al., *SatMAE* (https://arxiv.org/abs/2207.08051); data:
    https://purl.stanford.edu/vg497cb6002. Each row of the CSV file is one sample; they
    are sorted by class, place and time.

    Args:
        root: Folder of `train.csv`, `val.csv`, `test_gt.csv` and
            `fmow-sentinel` (or of its split folders).
        split: 'train', 'val' or 'test'.
        bands: Names of the bands to return and their order, such as 'B8A'; all 13 by
            default. Files without band descriptions are taken to have the bands in the
            order of their wavelengths.
        size: Side in pixels of the square images: the shorter side is resized and the
            centre is cropped. None returns them as they are.
        years: First and last year of the images.
        csv: Another CSV file, such as the filtered ones of SatMAE.
        index_dir: Folder of the index file; *root* if None.
        max_missing: Largest share of listed samples that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' uses the next one.
        transforms: Applied to each sample.
        download: Whether to fetch the CSV file of the split and the archive of all
            images if they are not there. Its size is compared with the published one;
            no checksum was found.

    Attributes:
        paths: Path of each sample.
        labels: Labels, (N,) int64.
        classes: The 62 names, alphabetical.

    Raises:
        NoSamplesError: If there is no sample; a DatasetNotFoundError.
        FileNotFoundError: If too many samples are missing.
        RuntimeError: If the archive cannot be fetched.
        ValueError: If an argument is wrong, or the CSV file lacks columns.
    """

    #: Address of the CSV files.
    url = 'https://stacks.stanford.edu/file/druid:vg497cb6002/'
    archive = Archive('fmow-sentinel', f'{url}fmow-sentinel.tar.gz', 77_500_000_000)
    classes = CLASSES
    all_bands = sentinel2.BANDS
    rgb_bands = sentinel2.RGB

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: Literal['train', 'val', 'test'] = 'train',
        bands: Sequence[str] = sentinel2.BANDS,
        size: int | None = 96,
        years: tuple[int, int] = (2000, 2020),
        csv: str | os.PathLike[str] | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
        download: bool = False,
    ) -> None:
        """Open the index, or build it."""
        check_choice('split', split, tuple(_SPLITS))
        check_side(size)
        self.root, self.split, self.size = os.fspath(root), split, size
        if len(years) != 2 or years[0] > years[1]:
            raise ValueError(f'*years* must be (first, last), not {years}')
        self.bands = tuple(spell_band(name) for name in bands)
        if not self.bands:
            raise ValueError(f'*bands* is empty: name some of {self.all_bands}')
        for name in self.bands:
            check_choice('bands', name, self.all_bands)
        self.value_range = sentinel2.reflectance_range(self.bands)
        if download:
            self._download(csv is None)
        self.index = open_sentinel_index(
            self.root,
            _SPLITS[split],
            None if csv is None else os.fspath(csv),
            None if index_dir is None else os.fspath(index_dir),
        )
        what = f'split {split!r} of fMoW-Sentinel in {csv or root}'
        self.index.check_missing(max_missing, what)
        taken = self.index.table['year'].to_numpy()
        self.rows = np.flatnonzero((taken >= years[0]) & (taken <= years[1]))
        if not len(self.rows):
            raise NoSamplesError(f'{what} has no image of the years {years}')
        labels = self.index.table['label'].to_numpy()[self.rows]
        self.labels = torch.from_numpy(labels.astype(np.int64))
        super().__init__(len(self.rows), what, on_error, transforms)

    def _download(self, csv: bool) -> None:
        """Fetch the CSV file, if wanted, and the images, unless they are there."""
        name = _SPLITS[self.split]
        if csv:
            download_url(f'{self.url}{name}.csv', self.root, f'{name}.csv')
        places = (self.root, os.path.join(self.root, self.archive.folder))
        if not any(os.path.isdir(os.path.join(place, name)) for place in places):
            fetch_archive(self.archive, self.root)

    @property
    def paths(self) -> list[str]:
        """Path of each sample."""
        names = self.index.table['path'].take(self.rows)
        return [os.path.join(self.root, name) for name in names.to_pylist()]

    @property
    def places(self) -> list[str]:
        """Longitude and latitude of each sample to 3 decimals, '' if unknown."""
        return self.index.table['place'].take(self.rows).to_pylist()

    def read(self, index: int) -> dict[str, Any]:
        """Return image, label and path.

        `image` is (C, H, W) in Level-1C digital numbers; `label` 0-d long; `year`,
        `longitude` and `latitude`, with `month` and `hour` -1: the images are
        composites.
        """
        row = int(self.rows[index])
        name = self.index.table['path'][row].as_py()
        path = os.path.join(self.root, name)
        with ImageFile(path) as file:
            if len(file.bands) != len(self.all_bands):
                raise UnreadableImageError(
                    f'{path} has {len(file.bands)} bands, expected the'
                    f' {len(self.all_bands)} of Sentinel-2. Replace the file'
                )
            names = file.bands if file.described else self.all_bands
            try:
                chosen = band_indices(names, self.bands)
            except ValueError as error:
                raise UnreadableImageError(
                    f'{path} has the bands {", ".join(names)}, expected those of'
                    f' Sentinel-2. Replace the file'
                ) from error
            image = file.read(chosen)
        return {
            'image': image if self.size is None else fit_square(image, self.size),
            'label': torch.tensor(int(self.labels[index])),
            'path': path,
            **time_metadata(str(self.index.table['year'][row].as_py())),
            **place_metadata(*place_of(self.index.table['place'][row].as_py())),
        }

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue in [0, 1]."""
        return pick_bands(to_unit(image, self.value_range), self.bands, self.rgb_bands)
