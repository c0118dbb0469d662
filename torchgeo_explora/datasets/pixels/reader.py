"""Images of one data set, read in the same way whatever their format."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchgeo_explora.datasets.pixels.image_file import (
    ImageFile,
    UnfitImageError,
    UnreadableImageError,
)
from torchgeo_explora.datasets.pixels.picture import (
    Region,
    cut,
    fit_square,
    middle_square,
    open_picture,
)
from torchgeo_explora.datasets.pixels.scaling import RANGES, ValueRange, check_range

_COLOUR = ('red', 'green', 'blue')

#: Bands, data type, and size where it matters.
type _Kind = tuple[tuple[str, ...], str, tuple[int, int] | None]


class ImageReader:
    """Reads JPEG, PNG, TIFF and GeoTIFF images that have the same bands.

    The kind that most files have decides what the others must be like. Bands are
    matched by the descriptions in each GeoTIFF, so files may hold them in different
    orders. Gray pictures among coloured ones become red, green and blue.

    Args:
        size: Side in pixels of the square images returned, whose shorter side is
            resized and whose centre is cropped; None returns them as they are.
        bands: Bands to return and their order, numbers from 1 or names; all if None.
        value_range: (low, high) of the sensor values; by the stored type if None.
        names: Names of the bands in every file, if the files do not name them.
        upright: Whether to turn pictures as their EXIF orientation says.
        max_pixels: Pixels of the largest image that is read; see `ImageFile`.

    Attributes:
        bands: Names of the bands returned.
        value_range: (low, high).
        range_known: Whether the range is certain: given, or that of 8-bit or float
            values. The usual scale of 16-bit values is a guess.
        no_data: Value of pixels without data, in all bands; None if no file that was
            examined declares any.
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
        upright: bool = True,
        max_pixels: int | None = None,
    ) -> None:
        """Keep the arguments."""
        self.size = size
        self._upright, self._max_pixels = upright, max_pixels
        self._wanted = None if bands is None else tuple(bands)
        self._given = value_range
        self._names = names

    def header(self, path: str) -> ImageFile:
        """Return a file that was closed again, with its header.

        Raises:
            UnreadableImageError: If it cannot be read.
            ValueError: If the number of *names* differs from the number of its bands.
        """
        with self._open(path) as file:
            return file

    def _open(self, path: str) -> ImageFile:
        return ImageFile(path, self._names, self._upright, self._max_pixels)

    def choose(self, headers: Sequence[ImageFile]) -> None:
        """Take bands, type and size from the first file of the most common kind.

        Gray pictures count as red, green and blue, which they can become.

        Args:
            headers: Headers of some files, at least one.

        Raises:
            ValueError: If that file lacks a band, or its type has no usual range.
        """
        counts: Counter[_Kind] = Counter()
        firsts: dict[_Kind, ImageFile] = {}
        for file in headers:
            firsts.setdefault(kind := self._kind(file), file)
            counts[kind] += 1
        for kind, file in firsts.items():
            colour = (_COLOUR, *kind[1:])
            if file.is_gray_picture and colour in counts:
                counts[colour] += counts[kind]
        if paged := [file for file in headers if file.pages > 1]:
            warnings.warn(
                f'{paged[0].path} has {paged[0].pages} pages, of which only the first'
                f' one is read ({len(paged)} such files among {len(headers)})',
                stacklevel=4,
            )
        # On a tie, the first one: they are in the order of the files.
        file = firsts[max(counts, key=counts.__getitem__)]
        self._first = (file.path, file.bands, file.dtype, file.size)
        declared = (header.no_data for header in headers)
        self.no_data = next((v for v in declared if v is not None), None)
        indices = list(range(len(file.bands)))
        if self._wanted is not None:
            indices = file.find(self._wanted)
        self.bands = tuple(file.bands[i] for i in indices)
        if self._given is not None:
            self.value_range = check_range(self._given, self.bands)
        elif file.dtype in RANGES:
            self.value_range = RANGES[file.dtype]
        else:
            raise ValueError(
                f'{file.path} holds {file.dtype} values, which have no usual range: '
                f'pass value_range=(low, high)'
            )
        self.range_known = self._given is not None or '16' not in file.dtype

    def _kind(self, file: ImageFile) -> _Kind:
        """Return what must be the same in all files."""
        bands = tuple(sorted(file.bands)) if file.described else file.bands
        return bands, file.dtype, None if self.size else file.size

    def read(self, path: str) -> tuple[Tensor, Region]:
        """Return an image, and which part of the file it shows.

        Returns:
            (C, H, W) in sensor values, and the part in pixels of the file.

        Raises:
            UnreadableImageError: If the file cannot be read.
            UnfitImageError: If the image has other bands, another type or, without
                *size*, another size than most.
        """
        try:
            with self._open(path) as file:
                image = file.read(self.check(file), self.size)
                height, width = file.size
                no_data = file.no_data
        except UnreadableImageError:
            raise
        except ValueError as error:
            raise UnfitImageError(str(error)) from error
        if self.size is None:
            return image, (0, 0, width, height)
        region = middle_square(width, height)
        return fit_square(image, self.size, no_data), region

    def check(self, header: ImageFile) -> list[int]:
        """Return the bands to read from a file that fits most others.

        A gray picture becomes red, green and blue if these have that.

        Raises:
            ValueError: If it does not fit.
        """
        file = header
        first, bands, dtype, size = self._first
        if bands == _COLOUR and dtype == file.dtype and file.is_gray_picture:
            file.expand_gray()
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
        max_pixels: Pixels of the largest picture that is read; 179 million if None.
    """

    bands = _COLOUR
    value_range: ValueRange = (0.0, 255.0)
    range_known = True
    no_data = None

    def __init__(self, size: int | None, max_pixels: int | None = None) -> None:
        """Keep the arguments."""
        self.size, self._max_pixels = size, max_pixels

    def header(self, path: str) -> None:
        """Do nothing: every picture has these bands."""

    def choose(self, headers: Sequence[None]) -> None:
        """Do nothing."""

    def check(self, header: None) -> None:
        """Do nothing."""

    def read(self, path: str) -> tuple[Tensor, Region]:
        """Return an image, (3, H, W), 0 to 255, and which part of the file it shows.

        Raises:
            UnreadableImageError: If the file cannot be read.
        """
        with open_picture(path, self._max_pixels) as picture:
            region = (0, 0, *picture.size)
            size = None if self.size is None else (self.size, self.size)
            return cut(picture, region, size), region
