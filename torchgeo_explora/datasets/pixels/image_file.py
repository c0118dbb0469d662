"""One image on disk, whatever its format: bands by name, pixels as stored."""

import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from torch import Tensor

from torchgeo_explora.datasets.pixels.masks import find_layout
from torchgeo_explora.datasets.pixels.raster_file import open_raster, refuse_pipe

#: Suffixes that are read, in lower case.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.webp')

#: Formats in which Pillow may open a picture, whatever its suffix: those that hold all
#: of their pixels and do not start another program.
PICTURES = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF')

# What Pillow gives for a mode: (mode to convert to, data type, band names).
_RGB = ('RGB', 'uint8', ('red', 'green', 'blue'))
_GRAY = ('L', 'uint8', ('gray',))
_DEEP = ('', 'uint16', ('gray',))
_MODES = {'1': _GRAY, 'L': _GRAY, 'LA': _GRAY, 'I': _DEEP, 'I;16': _DEEP}

_TRUE_COLOUR = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)

# How to turn a picture of each EXIF orientation upright.
_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)

# Values of the largest raster that is read as a whole: 8 GB in memory.
_MOST_VALUES = 2**31
# A raster with this many pixels or more may be read at a fraction of its size.
_LARGE = 2**22

# What Pillow and GDAL raise on damaged bytes.
_DAMAGE = (
    OSError,
    RasterioError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(RuntimeError):
    """A file that is missing, truncated, or not an image.

    It takes one string, so that a data loader's worker can pass it on.
    """


class UnfitImageError(UnreadableImageError, ValueError):
    """A file that can be read, but differs from the others of its data set."""


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the file in any error that occurs while it is read.

    Raises:
        UnreadableImageError: If something goes wrong.
    """
    try:
        yield
    except _DAMAGE as error:
        # A name that is not UTF-8 cannot be printed as it is.
        path = path.encode(errors='backslashreplace').decode()
        raise UnreadableImageError(
            f'cannot read image {path}: {reason_of(error)}. Replace the file'
        ) from error


def reason_of(error: BaseException) -> str:
    """Return in one line, without a full stop, why a file could not be read."""
    # Rasterio only refers to what GDAL said.
    while 'previous exception' in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return ' '.join(str(error).split()).rstrip('.') or type(error).__name__


def open_limited(path: str, max_pixels: int | None = None) -> Image.Image:
    """Open a picture that is not too large.

    Args:
        path: The file.
        max_pixels: Largest number of pixels; Pillow's limit, 179 million, if None. A
            higher limit applies to the whole process.

    Raises:
        ValueError: If it has more pixels.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None and limit is not None:
        Image.MAX_IMAGE_PIXELS = max(limit, max_pixels)
    try:
        image = Image.open(path, formats=PICTURES)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f'it is very large ({error}): make a smaller copy; or pass *max_pixels* of'
            f' `ImageFolder` or `CSVDataset`; or make it a GeoTIFF and use it as a'
            f' scene, with `SceneWindows`'
        ) from error
    if max_pixels is not None and image.width * image.height > max_pixels:
        image.close()
        raise ValueError(
            f'it has {image.height} x {image.width} pixels, *max_pixels* is'
            f' {max_pixels}: raise it, or make it a GeoTIFF and use it as a scene, with'
            f' `SceneWindows`'
        )
    return image


class ImageFile:
    """An open image: the header is read at once, the pixels on demand.

    Values of TIFF files with fewer than 8 bits are scaled to 0 to 255, palettes become
    RGB (gray ones one band), white as the lowest value is inverted, and CMYK becomes
    RGB. If there are several pages, only the first is read.

    TIFF, and PNG with 16 bits in several bands, go through rasterio; JPEG, WebP and
    other PNG through Pillow, where a palette becomes RGB. An alpha channel is not a
    band: pixels where it is 0 have no data, like those outside any other mask.

    Args:
        path: File to open, with one of `SUFFIXES`.
        names: Names of the bands, instead of what the file says.
        upright: Whether to turn JPEG, PNG and WebP as their EXIF orientation says.
        max_pixels: Pixels of the largest image that is read; if None, 179 million for
            pictures, and the number that makes 2**31 values for rasters.

    Attributes:
        bands: A name for each band: the one given, else its description in the file,
            else its colour, else its number from 1.
        described: Whether the names are the file's own descriptions.
        dtype: NumPy's name of the stored type, such as 'uint8'.
        size: (H, W) in pixels, upright.
        pages: Number of pages of a TIFF, 1 for other files.
        no_data: What `read` returns for pixels without data, None if the file does not
            declare any.

    Raises:
        UnreadableImageError: If the file cannot be opened as an image.
        ValueError: If the number of names differs from the number of bands.
    """

    bands: tuple[str, ...]
    dtype: str
    no_data: float | None = None
    pages = 1
    _mode = ''
    _turn: Image.Transpose | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Sequence[str] | None = None,
        upright: bool = True,
        max_pixels: int | None = None,
    ) -> None:
        """Open the file and read its header."""
        self.path = os.fspath(path)
        self._max_pixels = max_pixels
        self._stack = ExitStack()
        self._image: Any = None
        try:
            with naming(self.path):
                refuse_pipe(self.path)
                suffix = os.path.splitext(self.path)[1].lower()
                if suffix in ('.tif', '.tiff') or (
                    suffix == '.png' and _is_deep_png(self.path)
                ):
                    self._open_raster()
                else:
                    self._open_picture(upright)
            if names is not None:
                self._rename(names)
        except (UnreadableImageError, ValueError):
            self._stack.close()
            raise

    def _rename(self, names: Sequence[str]) -> None:
        if len(names) != len(self.bands):
            raise ValueError(
                f'*band_names* has {len(names)} names, {self.path} has'
                f' {len(self.bands)} bands: name all of them, in the order of the file'
            )
        self.bands, self.described = tuple(names), False

    def _open_raster(self) -> None:
        # GDAL lists the whole folder at every open, which is slow in a large one.
        self._stack.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='TRUE'))
        image = self._stack.enter_context(open_raster(self.path))
        # Fetched once: each access asks GDAL about every band.
        names, colours = image.descriptions, image.colorinterp
        self._raster_indices, self._masked = find_layout(image)
        kept = [i - 1 for i in self._raster_indices]
        self.described = all(names[i] for i in kept)
        self.bands = tuple(
            names[i] or (colours[i].name if colours[i] in _TRUE_COLOUR else str(i + 1))
            for i in kept
        )
        if image.tags(ns='IMAGE_STRUCTURE').get('SOURCE_COLOR_SPACE') == 'CMYK':
            # GDAL has converted it; its fourth band is full everywhere.
            self._raster_indices, self.bands = [1, 2, 3], _RGB[2]
            self._masked = False
        self._table = _value_table(image)
        if self._table is not None and len(self._table) == 3:
            self._raster_indices, self.bands = [1, 1, 1], _RGB[2]
        self.pages = max(1, len(image.subdatasets))
        if self._masked or image.nodata is not None:
            self.no_data = 0.0
        self.dtype = image.dtypes[0]
        self.size: tuple[int, int] = (image.height, image.width)
        self._image = image

    def _open_picture(self, upright: bool) -> None:
        image = self._stack.enter_context(open_limited(self.path, self._max_pixels))
        self._mode, self.dtype, self.bands = _MODES.get(image.mode, _RGB)
        self.described = False
        self.size = (image.height, image.width)
        orientation = _orientation(image) if upright else 1
        self._turn = _TURNS.get(orientation)
        if orientation in _LYING:
            self.size = (image.width, image.height)
        self._masked = image.has_transparency_data
        if self._masked:
            self.no_data = 0.0
        self._image = image

    @property
    def is_gray_picture(self) -> bool:
        """Whether `expand_gray` is possible."""
        return self.bands == ('gray',) and self._mode == 'L'

    def expand_gray(self) -> None:
        """Read a gray picture as red, green and blue, as palettes are."""
        self._mode, self.dtype, self.bands = _RGB

    def find(self, bands: Iterable[int | str]) -> list[int]:
        """Return the positions of bands in the file, from 0.

        Args:
            bands: Numbers from 1, or names.

        Raises:
            ValueError: If the file lacks a band.
        """
        indices = []
        for band in bands:
            if isinstance(band, str) and band in self.bands:
                indices.append(self.bands.index(band))
            elif isinstance(band, int) and 1 <= band <= len(self.bands):
                indices.append(band - 1)
            else:
                raise ValueError(
                    f'band {band!r} is not in {self.path}, which has the '
                    f'{len(self.bands)} bands {", ".join(self.bands)}: *bands* takes '
                    f'these names, or numbers from 1'
                )
        return indices

    def read(
        self, indices: Sequence[int] | None = None, side: int | None = None
    ) -> Tensor:
        """Read the pixels.

        Args:
            indices: Bands to read, from 0, in the order wanted; all by default.
            side: Shorter side that the image will be resized to. A raster of more than
                four million pixels whose sides are four times as long or more is read
                at a fraction of its size (the mean of squares of its pixels, or its
                overviews), with sides at least twice as long.

        Returns:
            Stored values, (C, H, W). Pixels without data (NaN, the nodata value of the
            file, or outside its mask) are 0.

        Raises:
            UnreadableImageError: If the pixels cannot be decoded.
        """
        indices = list(range(len(self.bands)) if indices is None else indices)
        # All in NumPy: PyTorch's threads gain nothing here and compete in workers.
        with naming(self.path):
            if isinstance(self._image, Image.Image):
                values = self._read_picture(self._image)[indices]
            else:
                values = self._read_raster(self._image, indices, side)
        image = np.ascontiguousarray(values, dtype=np.float32)
        if values.dtype.kind == 'f':
            image = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
        return torch.from_numpy(image)

    def _read_picture(self, image: Image.Image) -> NDArray[Any]:
        """Return all bands of a picture, (C, H, W)."""
        picture = image if self._turn is None else image.transpose(self._turn)
        alpha = None
        if self._masked:
            alpha = np.asarray(picture.convert('RGBA').getchannel('A'))
        if self._mode and picture.mode != self._mode:
            picture = picture.convert(self._mode)
        # (H, W) or (H, W, C) -> (C, H, W)
        values = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        return values if alpha is None else np.where(alpha == 0, 0, values)

    def _read_raster(
        self, file: DatasetReader, indices: list[int], side: int | None
    ) -> NDArray[Any]:
        """Return bands of a raster, (C, H, W).

        Raises:
            ValueError: If it is too large.
        """
        shape = self._shape_to_read(side)
        # Without overviews, all pixels are read on the way to a smaller image.
        height, width = shape if file.overviews(1) else self.size
        most = _MOST_VALUES
        if self._max_pixels is not None:
            most = self._max_pixels * len(indices)
        if len(indices) * height * width > most:
            raise ValueError(
                f'it has {len(indices)} bands of {height} x {width} pixels, too many to'
                f' read at once: make a smaller copy; or use it as a scene, with'
                f' `SceneWindows`; or pass a larger *max_pixels* of `ImageFolder` or'
                f' `CSVDataset`'
            )
        options: dict[str, Any] = {}
        if shape != self.size:
            options = {'out_shape': shape, 'resampling': Resampling.average}
        raw = file.read([self._raster_indices[i] for i in indices], **options)
        values = raw
        if self._table is not None:
            rows = [i % len(self._table) for i in indices]
            values = np.stack(
                [self._table[r][v] for r, v in zip(rows, raw, strict=True)]
            )
        if file.nodata is not None:
            values[raw == file.nodata] = 0
        if self._masked:
            options.pop('resampling', None)
            values[:, file.dataset_mask(**options) == 0] = 0
        return values

    def _shape_to_read(self, side: int | None) -> tuple[int, int]:
        """Return the height and width at which a raster is read."""
        height, width = self.size
        # The mean of palette indices would be another colour.
        if side is None or height * width < _LARGE or self._table is not None:
            return self.size
        factor = min(height, width) // (2 * side)
        if factor < 2:
            return self.size
        return math.ceil(height / factor), math.ceil(width / factor)

    def __enter__(self) -> Self:
        """Return the open image."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file; what its header said stays known."""
        self._stack.close()
        self._image = None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 if it has no readable one."""
    # Looking for it at the end of a PNG would decode the whole file.
    if 'exif' not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1
    return value if value in _TURNS else 1


def _value_table(image: DatasetReader) -> NDArray[np.uint8] | None:
    """Return the gray or the colours that the values of a file stand for.

    Args:
        image: An open file.

    Returns:
        (1, 256) gray or (3, 256) red, green and blue; None if values are used as
        stored: several bands, more than 8 bits, or 8-bit gray from black to white.
    """
    if image.count != 1 or image.dtypes[0] != 'uint8':
        return None
    bits = int(image.tags(1, ns='IMAGE_STRUCTURE').get('NBITS', 8))
    inverted = image.tags(ns='IMAGE_STRUCTURE').get('MINISWHITE') == 'YES'
    if image.colorinterp[0] == ColorInterp.palette:
        table = np.zeros((3, 256), np.uint8)
        for value, colour in image.colormap(1).items():
            table[:, value] = colour[:3]
        return table[:1] if (table == table[0]).all() else table
    if bits == 8 and not inverted:
        return None
    top = 2**bits - 1
    gray = np.rint(np.arange(256).clip(0, top) * (255 / top))
    return (255 - gray if inverted else gray).astype(np.uint8)[None]


def _is_deep_png(path: str) -> bool:
    # Pillow silently reduces 16 bits in several bands to 8. IHDR holds the depth in
    # byte 24 and the colour type in byte 25 (2: RGB, 4: gray + alpha, 6: RGBA).
    with open(path, 'rb') as file:
        header = file.read(26)
    return len(header) == 26 and header[24] == 16 and header[25] in (2, 4, 6)
