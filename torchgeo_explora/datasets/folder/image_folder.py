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
    """JPEG, PNG, WebP, TIFF and GeoTIFF images in a folder, with or without labels.

    The images of a split are directly in its folder (no labels) or in one folder per
    class (labels follow the alphabetical order of the class folders; deeper folders
    are allowed). Hidden files are ignored; images with other suffixes are counted.

    Splits are the sub-folders `train`, `val`, `test` and `predict` of *root*, or of a
    folder `images` in it. `training`, `valid`, `validation`, `testing` and capitals
    are understood too. Without its own folder, 'val' or 'test' is a fraction of the
    training images, chosen by a hash of the seed and the path: an image keeps its split
    when others are added or removed. Without its own folder, 'predict' is every image.
    Images are in the order of their paths.

    Bands are matched by the descriptions in each GeoTIFF, so files may hold them in
    different orders.

    Args:
        root: The folder.
        split: 'train', 'val', 'test' or 'predict'.
        size: Side in pixels of the square images returned: the shorter side is resized
            to it (bilinear, antialiased) and the centre is cropped. Needed if the
            images differ in size; None returns them as they are. TIFFs of more than
            four million pixels are read at a fraction of their size if that is enough.
        bands: Bands to return and their order: numbers from 1, or names as in the
            band descriptions ('red', 'green', 'blue' in JPEG and PNG). All by default;
            the attribute *bands* has their names.
        value_range: (low, high) of the sensor values, each one number, or one per
            band. The default follows the stored type: uint8 (0, 255); uint16 and int16
            (0, 10000), the scale of Sentinel-2 reflectance; float (0, 1). This makes
            most reflectance dark: see `measure_range`.
        val_fraction: Share of the training images for 'val', in [0, 1).
        test_fraction: Share of the training images for 'test', in [0, 1).
        seed: Seed of the fractions.
        on_error: 'raise' stops at an image that is unreadable or does not fit the
            others; 'skip' adds it to `skipped` and returns the next image instead.
            Misfits that show in the headers are found at the start, from the headers of
            at most 20,000 images.
        transforms: Applied to each sample.
        band_names: Names of the bands in every file, in their order, for files that do
            not name them: GeoTIFFs without band descriptions.
        upright: Whether to turn JPEG, PNG and WebP as their EXIF orientation says, as
            viewers do.
        max_pixels: Pixels of the largest image that is read. By default 179 million for
            JPEG, PNG and WebP, as a small file may claim any size, and 2**31 values
            for TIFF.

    Attributes:
        paths: Paths of the split's images, sorted.
        labels: Their labels, or None.
        classes: Names of the classes, in the order of the labels.
        no_data: Value of pixels without data, in all bands; None if no file that was
            examined declares any, or has a mask or an alpha channel.
        range_known: Whether *value_range* is certain: given, or that of 8-bit or float
            values. The usual scale of 16-bit values is a guess.

    Raises:
        NoImagesError: If the folder or the split has no image.
        UnreadableImageError: If an image cannot be read and *on_error* is 'raise', or
            if none can.
        ValueError: If an argument is wrong, or the images do not fit each other.
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
        upright: bool = True,
        max_pixels: int | None = None,
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
        self.reader = ImageReader(
            size, bands, value_range, band_names, upright, max_pixels
        )
        self.settle(self.reader, self.paths.__getitem__)
        self.bands, self.value_range = self.reader.bands, self.reader.value_range
        self.range_known, self.no_data = self.reader.range_known, self.reader.no_data
        # The usual ranges of 8-bit and float values are certain and need no check.
        if value_range is not None or not self.range_known:
            self.warn_of_dark_images(self.value_range)

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
