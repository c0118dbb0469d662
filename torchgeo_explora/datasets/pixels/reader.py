"""Images of one data set: read alike, whatever their format."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchgeo_explora.datasets.pixels.image_file import ImageFile
from torchgeo_explora.datasets.pixels.picture import (
    Region,
    cut,
    fit_square,
    middle_square,
    open_picture,
)
from torchgeo_explora.datasets.pixels.scaling import RANGES, ValueRange, check_range


class ImageReader:
    """Reads JPEG, PNG, TIFF and GeoTIFF images that have the same bands.

    The first file decides what the others must have. Bands are matched by the
    descriptions in each GeoTIFF, so files may hold them in different orders.

    Args:
        size: Side in pixels of the square images returned, whose shorter side is
            resized and whose centre is cropped; None returns them as they are.
        bands: Bands to return and their order, numbers from 1 or names; all if None.
        value_range: (low, high) of the sensor values; by the stored type if None.
        names: Names of the bands in every file, where the files do not say.

    Attributes:
        bands: Names of the bands returned.
        value_range: (low, high).
        range_known: Whether the range was given or is all that the stored type can
            mean, and not only the usual scale of 16 bits.
        no_data: Value of pixels without data, in all bands; None if the first file does
            not declare any.
    """

    bands: tuple[str, ...]
    value_range: ValueRange
    range_known: bool
    no_data: float | None

    def __init__(
        self,
        size: int | None,
        bands: Sequence[int | str] | None = None,
        value_range: Sequence[Any] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Keep the arguments."""
        self.size = size
        self._wanted = None if bands is None else tuple(bands)
        self._given = value_range
        self._names = names

    def look_at(self, path: str) -> None:
        """Take bands, type and size from the first file.

        Raises:
            UnreadableImageError: If it cannot be read.
            ValueError: If it lacks a band, or its type has no usual range.
        """
        with ImageFile(path, self._names) as file:
            self._first = (path, file.bands, file.dtype, file.size)
            self.no_data = file.no_data
            indices = list(range(len(file.bands)))
            if self._wanted is not None:
                indices = file.find(self._wanted)
            self.bands = tuple(file.bands[i] for i in indices)
            kind = file.dtype
        if self._given is not None:
            self.value_range = check_range(self._given, self.bands)
        elif kind in RANGES:
            self.value_range = RANGES[kind]
        else:
            raise ValueError(
                f'{path} holds {kind} values, which have no usual range: pass '
                f'value_range=(low, high)'
            )
        self.range_known = self._given is not None or '16' not in kind

    def read(self, path: str) -> tuple[Tensor, Region]:
        """Return an image, and which part of the file it shows.

        Returns:
            (C, H, W) in sensor values, and the part in pixels of the file.

        Raises:
            UnreadableImageError: If the file cannot be read.
            ValueError: If the image has other bands, another type or, without *size*,
                another size than the first.
        """
        with ImageFile(path, self._names) as file:
            image = file.read(self._check(file))
            height, width = file.size
        if self.size is None:
            return image, (0, 0, width, height)
        region = middle_square(width, height)
        return fit_square(image, self.size, self.no_data), region

    def _check(self, file: ImageFile) -> list[int]:
        """Return the bands to read from a file that fits the first one."""
        first, bands, dtype, size = self._first
        if self._given is None and RANGES.get(file.dtype) != self.value_range:
            raise ValueError(
                f'{file.path} holds {file.dtype} values but {first} holds {dtype}: '
                f'pass value_range=(low, high) for both, or separate them'
            )
        if self.size is None and file.size != size:
            raise ValueError(
                f'{file.path} is {file.size} pixels but {first} is {size} (H, W): pass '
                f'size={min(*size, *file.size)}, for instance, to bring all images to '
                f'one size'
            )
        if self._wanted is not None:
            return file.find(self._wanted)
        if len(file.bands) != len(bands):
            raise ValueError(
                f'{file.path} has {len(file.bands)} bands {file.bands} but {first} has '
                f'{len(bands)} {bands}: pass *bands* that both have, or separate them'
            )
        if file.described and file.bands != bands:
            return file.find(bands)
        return list(range(len(bands)))


class StretchedReader:
    """Reads pictures as red, green and blue, stretched to a square, as WILDS does.

    A JPEG much larger than needed is decoded at a fraction of its size, which is fast.
    The attributes are those of `ImageReader`.

    Args:
        size: Side in pixels of the images; None keeps the files' pixels.
    """

    bands = ('red', 'green', 'blue')
    value_range: ValueRange = (0.0, 255.0)
    range_known = True
    no_data = None

    def __init__(self, size: int | None) -> None:
        """Keep the argument."""
        self.size = size

    def look_at(self, path: str) -> None:
        """Do nothing: every picture has these bands."""

    def read(self, path: str) -> tuple[Tensor, Region]:
        """Return an image, (3, H, W), 0 to 255, and which part of the file it shows.

        Raises:
            UnreadableImageError: If the file cannot be read.
        """
        with open_picture(path) as picture:
            region = (0, 0, *picture.size)
            size = None if self.size is None else (self.size, self.size)
            return cut(picture, region, size), region
