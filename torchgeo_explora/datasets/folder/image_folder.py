"""A folder of the user's own images."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.datasets.folder.layout import (
    SPLITS,
    FolderLayout,
    NoImagesError,
    Split,
)
from torchgeo_explora.datasets.pixels.figure import true_colour
from torchgeo_explora.datasets.pixels.reader import ImageReader
from torchgeo_explora.datasets.pixels.scaling import to_unit
from torchgeo_explora.datasets.tables.dataset import (
    OnError,
    TableDataset,
    Transform,
    check_choice,
    check_side,
)


class ImageFolder(TableDataset):
    """JPEG, PNG, TIFF and GeoTIFF images in a folder, with or without labels.

    The images of a split lie directly in its folder (no labels) or in one folder a
    class (labels follow the alphabetical order of the class folders; deeper folders
    are allowed). Hidden files and files with other suffixes are passed over.

    Splits are the sub-folders ``train``, ``val``, ``test`` and ``predict`` of *root*.
    Without a folder of its own, 'val' or 'test' is a fraction of the training images,
    drawn from a hash of the seed and the path: an image keeps its split whatever is
    added, removed or listed in another order. Without a folder of its own, 'predict'
    is every image. The order is that of the sorted paths.

    Bands are matched by the descriptions in each GeoTIFF, so files may hold them in
    different orders.

    Args:
        root: The folder.
        split: 'train', 'val', 'test' or 'predict'.
        size: Side in pixels of the square images returned: the shorter side is resized
            to it (bilinear, antialiased) and the centre is cropped. Needed if the
            images differ in size; None returns them as they are.
        bands: Bands to return and their order: numbers from 1, or names as in the
            band descriptions ('red', 'green', 'blue' in JPEG and PNG). All by default.
        value_range: (low, high) of the sensor values, each one number or a number a
            band. By default follows the stored type: uint8 (0, 255); uint16 and int16
            (0, 10000), the scale of Sentinel-2 reflectance; float (0, 1). Dark for
            most reflectance: see :func:`measure_range`.
        val_fraction: Share of the training images for 'val', in [0, 1).
        test_fraction: Share of the training images for 'test', in [0, 1).
        seed: Seed of the fractions.
        on_error: 'raise' stops at an unreadable image; 'skip' warns once, counts it in
            ``skipped`` and returns the next readable image in its place.
        transforms: Applied to each sample.
        band_names: Names of the bands in every file, in their order, where the files
            do not tell: GeoTIFFs without band descriptions.

    Attributes:
        paths: Paths of the split's images, sorted.
        labels: Their labels, or None.
        classes: Names of the classes, in the order of the labels.
        bands: Names of the bands returned.
        value_range: (low, high).
        no_data: Value of pixels without data, in all bands; None if the first file does
            not declare any.
        range_known: Whether *value_range* was given or is all that 8 bits or a float
            can mean, not the usual scale of 16 bits.

    Raises:
        NoImagesError: If the folder or the split has no image.
        UnreadableImageError: If an image cannot be read and *on_error* is 'raise', or
            if none can.
        ValueError: If an argument, or the images among themselves, do not fit.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: Split = 'train',
        size: int | None = None,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float]
        | tuple[Sequence[float], Sequence[float]]
        | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
        band_names: Sequence[str] | None = None,
    ) -> None:
        """List the files and read the header of the first one."""
        check_choice('split', split, SPLITS)
        check_side(size)
        self.root = os.fspath(root)
        self.split = split
        self.size = size
        layout = FolderLayout(self.root, val_fraction, test_fraction, seed)
        members = layout.members(split)
        if not members:
            raise NoImagesError(layout.why_empty(split))
        self.paths = [os.path.join(self.root, name) for name in members]
        self.classes = layout.classes
        self.labels = layout.labels(split)
        what = f'split {split!r} in {self.root}'
        super().__init__(len(self.paths), what, on_error, transforms)
        self.reader = ImageReader(size, bands, value_range, band_names)
        self.look_at_first(lambda index: self.reader.look_at(self.paths[index]))
        self.bands, self.value_range = self.reader.bands, self.reader.value_range
        self.range_known, self.no_data = self.reader.range_known, self.reader.no_data

    def read(self, index: int) -> dict[str, Any]:
        """Return an image.

        `image` is (C, H, W) in sensor values; `path`; with labels, `label` 0-d long.
        """
        path = self.paths[index]
        sample: dict[str, Any] = {'image': self.reader.read(path)[0], 'path': path}
        if self.labels is not None:
            sample['label'] = torch.tensor(self.labels[index])
        return sample

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue if the bands are named so, else the first three.

        Images of one or two bands become one band of gray.
        """
        return true_colour(to_unit(image, self.value_range), self.bands)
