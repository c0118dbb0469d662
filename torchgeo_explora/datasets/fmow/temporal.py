"""Functional Map of the World, as series of images of one place."""

import os
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from torchgeo_explora.datasets.fmow.classes import CLASSES
from torchgeo_explora.datasets.fmow.index import NO_TIME, check_index
from torchgeo_explora.datasets.fmow.legacy import legacy_members, legacy_stack
from torchgeo_explora.datasets.fmow.rgb import FMoWRGB
from torchgeo_explora.datasets.tables.dataset import (
    NoSamplesError,
    OnError,
    TableDataset,
    Transform,
    check_choice,
)
from torchgeo_explora.datasets.tables.index_file import parse_time


class FMoWTemporal(TableDataset):
    """Series of fMoW images of one place, with their times.

    There is one sample per image, as in SatMAE (https://arxiv.org/abs/2207.08051): that
    image and others of the same split, class and place, drawn at random. Places with
    too few images repeat theirs.

    This differs from SatMAE's loader: places come from folders and metadata, not from
    the length of a file's name; times come from the metadata; every image is cropped to
    its own box, so that all show the same ground; and each keeps its own pixels, where
    SatMAE repeats the first image (see `legacy_stack`).

    Args:
        root: Folder of `train`, `val` and `test_gt` (or `test`).
        split: 'train', 'val' or 'test'.
        times: T, images in a series.
        size: Side in pixels of the square images.
        crop: 'box' or 'image', as for `FMoWRGB`.
        order: 'time' sorts a series by time; 'drawn' starts with the sample's own
            image.
        seed: Seed of the draw. The other images depend only on it and on the sample's
            index, so that a run can be resumed exactly; None draws them again at every
            visit, from PyTorch's global generator.
        legacy_sampling: Do as SatMAE's loader does: three images, drawn again at every
            visit and not sorted, with one random crop for all, even in evaluation.
        csv: A CSV file such as `train_62classes.csv` instead of the folders.
        index_dir: Folder of the index file; *root* (with *csv*: its folder) if None.
        max_missing: Largest share of listed samples that may be missing, in [0, 1].
        on_error: 'raise' stops at an unreadable image, 'skip' uses the next series.
        transforms: Applied to each sample.
        download: Whether to fetch the split, as for `FMoWRGB`.

    Attributes:
        labels: Labels, (N,) int64.
        classes: The 62 names, alphabetical.

    Raises:
        NoSamplesError: If there is no sample; a DatasetNotFoundError.
        FileNotFoundError: If too many samples are missing.
        ValueError: If an argument or the CSV file is wrong.
    """

    classes = CLASSES

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: Literal['train', 'val', 'test'] = 'train',
        times: int = 3,
        size: int = 224,
        crop: Literal['box', 'image'] = 'box',
        order: Literal['time', 'drawn'] = 'time',
        seed: int | None = 0,
        legacy_sampling: bool = False,
        csv: str | os.PathLike[str] | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
        download: bool = False,
    ) -> None:
        """Open the index and group the images by place."""
        check_choice('order', order, ('time', 'drawn'))
        if times < 1:
            raise ValueError(f'*times* must be 1 or more, not {times}')
        if legacy_sampling and times != 3:
            raise ValueError(f'*legacy_sampling* takes 3 *times*, not {times}')
        self.images = FMoWRGB(
            root,
            split,
            crop,
            None if legacy_sampling else size,
            csv=csv,
            index_dir=index_dir,
            max_missing=max_missing,
            download=download,
        )
        self.root, self.split = self.images.root, split
        self.times, self.size, self.order = times, size, order
        self.seed, self.legacy_sampling = seed, legacy_sampling
        what = f'the series of split {split!r} of fMoW in {csv or root}'
        check_index(self.images.index, (NO_TIME,), max_missing, what)
        self._members = self._timed_images()
        table, rows = self.images.index.table, self.images.rows[self._members]
        places = table['location'].take(rows).combine_chunks().dictionary_encode()
        self._places = places.indices.to_numpy().astype(np.int64)
        # The samples of place p are _by_place[_edges[p] : _edges[p + 1]].
        self._by_place = np.argsort(self._places, kind='stable')
        count = len(places.dictionary) + 1
        self._edges = np.searchsorted(self._places[self._by_place], np.arange(count))
        self.labels = self.images.labels[torch.from_numpy(self._members)]
        if not len(self._members):
            raise NoSamplesError(f'{what} has no image with a time')
        super().__init__(len(self._members), what, on_error, transforms)

    def _timed_images(self) -> NDArray[np.int64]:
        """Return the images that have a time, each once even with several boxes."""
        images = np.flatnonzero(np.diff(self.images.rows, prepend=-1))
        timed = pc.not_equal(self.images.index.table['timestamp'], '').to_numpy()
        return images[timed[self.images.rows[images]]]

    @property
    def places(self) -> list[str]:
        """Longitude and latitude of each sample to 3 decimals, '' if unknown."""
        places = self.images.places
        return [places[i] for i in self._members]

    def series(self, index: int) -> list[int]:
        """Return the images of a sample, as indices of `images`."""
        place = self._places[index]
        samples = self._by_place[self._edges[place] : self._edges[place + 1]]
        first = int(self._members[index])
        others = [int(self._members[i]) for i in samples if i != index]
        if self.legacy_sampling:
            return list(legacy_members(first, others))
        chosen = [first, *self._draw(others, index)]
        # Repeat the last one if the place has too few images.
        chosen += chosen[-1:] * (self.times - len(chosen))
        return sorted(chosen, key=self._time) if self.order == 'time' else chosen

    def _draw(self, others: list[int], index: int) -> list[int]:
        count = min(self.times - 1, len(others))
        if self.seed is None:
            picks = torch.randperm(len(others))[:count].tolist()
        else:
            generator = np.random.default_rng((self.seed, index))
            picks = generator.permutation(len(others))[:count].tolist()
        return [others[i] for i in picks]

    def _time(self, image: int) -> str:
        # ISO times in UTC sort as text.
        return self.images.index.table['timestamp'][
            int(self.images.rows[image])
        ].as_py()

    def read(self, index: int) -> dict[str, Any]:
        """Return a series.

        `image` is (T, 3, H, W), 0 to 255; `timestamps` (T, 3) float32: year - 2002,
        month - 1, hour; `label` 0-d long; `path` and the metadata of `FMoWRGB` are
        those of the sample's own image.
        """
        members, own = self.series(index), int(self._members[index])
        pixels = {i: self.images.read(i)['image'] for i in set(members)}
        stack = [pixels[i] for i in members]
        codes = [parse_time(self._time(i)) for i in members]
        return {
            'image': legacy_stack(stack, self.size)
            if self.legacy_sampling
            else torch.stack(stack),
            'timestamps': torch.tensor(codes, dtype=torch.float32),
            'label': torch.tensor(int(self.labels[index])),
            'path': self.images.path(own),
            **self.images.metadata(int(self.images.rows[own])),
        }
