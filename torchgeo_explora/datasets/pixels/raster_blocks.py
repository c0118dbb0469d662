"""A raster of any size, read in blocks with their surroundings."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.datasets.pixels.masks import find_layout
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.functional.windows import window_starts

#: Megabytes of a file that GDAL may cache: blocks are read only once, and its default
#: is a share of the machine's memory.
CACHE = 64


class RasterBlocks(NonGeoDataset):
    """Blocks of a raster file for a model that sees overlapping windows.

    Windows start at multiples of a stride. A block is a square of *block* pixels, read
    with the surroundings that the windows touching it need. Windows that touch two
    blocks are computed with both, so the result of a block depends neither on the
    others nor on where the raster is cut.

    Args:
        path: A file that GDAL reads.
        size: Side of a window in pixels.
        stride: Pixels from one window to the next.
        block: Side of a block, a multiple of *stride*.
        skip: Returns the numbers of the blocks that need not be read.
        channels: Numbers of the bands that are read, from 1; all if None. An alpha band
            is never one of them: there is no data where it is 0.
        nodata: Value of pixels without data, if the file does not declare it.

    Attributes:
        height: Height of the raster in pixels.
        width: Width of the raster in pixels.
        bands: Descriptions of the bands that are read, () if they have none.
        dtype: Type of the values.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If *block* is not a multiple of *stride*, or the file lacks a band,
            or is a container of other rasters.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int,
        stride: int,
        block: int,
        skip: Callable[[], set[int]] = set,
        channels: Sequence[int] | None = None,
        nodata: float | None = None,
    ) -> None:
        """Read the header."""
        self.path = os.fspath(path)
        # An address, a raster of a container, a path into an archive, or the XML of a
        # virtual raster.
        elsewhere = ':' in self.path or self.path.startswith(('/vsi', '<'))
        if not elsewhere and not os.path.exists(self.path):
            raise FileNotFoundError(f'no raster at {path}')
        if block % stride:
            raise ValueError(
                f'*block* {block} must be a multiple of the stride {stride}: take'
                f' {max(1, round(block / stride)) * stride}'
            )
        self.size, self.stride, self.block = size, stride, block
        with open_raster(self.path) as file:
            if not file.count:
                raise ValueError(
                    f'{path} has no bands of its own: give one of its rasters,'
                    f' {", ".join(file.subdatasets) or "but it names none"}'
                )
            self.height, self.width = file.height, file.width
            self.dtype = file.dtypes[0]
            layout = find_layout(file)
            self.marked = layout.marked
            self.nodata = file.nodata if nodata is None else nodata
            self.channels = list(channels or layout.bands)
            if missing := set(self.channels).difference(file.indexes):
                raise ValueError(
                    f'{path} has {file.count} bands, but *channels* asks for'
                    f' {sorted(missing)}: numbers start at 1'
                )
            # Fetched once: each access asks GDAL about every band.
            descriptions = file.descriptions
            names = [descriptions[i - 1] for i in self.channels]
        self.bands: tuple[str, ...] = tuple(names) if all(names) else ()
        self.tops = list(range(0, self.height, block))
        self.lefts = list(range(0, self.width, block))
        done = skip()
        self.numbers = [i for i in range(self.blocks) if i not in done]
        if not self.numbers:
            # Without any block there would be no prediction, and so no result.
            self.numbers = [self.blocks - 1]

    @property
    def blocks(self) -> int:
        """Number of all blocks."""
        return len(self.tops) * len(self.lefts)

    def __len__(self) -> int:
        """Return the number of blocks to read."""
        return len(self.numbers)

    def corner(self, number: int) -> tuple[int, int]:
        """Return the top and left of a block, in pixels."""
        row, column = divmod(number, len(self.lefts))
        return self.tops[row], self.lefts[column]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a block and its surroundings.

        Returns:
            'image' (C, h, w) float32, NaN where a band has no data; 'valid' (h, w)
            bool, False where all bands have none or one is not finite; 'block', its
            number; 'inside', where the block starts in the image, (top, left).
        """
        number = self.numbers[index]
        top, left = self.corner(number)
        rows = self._span(top, self.height)
        columns = self._span(left, self.width)
        window = Window.from_slices(rows, columns)
        with rasterio.Env(GDAL_CACHEMAX=CACHE), open_raster(self.path) as file:
            values = file.read(self.channels, window=window)
            known = np.ones(values.shape, bool)
            if self.marked:
                known &= file.read_masks(self.channels, window=window) > 0
        if self.nodata is not None:
            known &= values != self.nodata
        image = values.astype(np.float32)
        valid = known.any(0)
        if values.dtype.kind == 'f':
            valid &= np.isfinite(image).all(0)
        if not known.all():
            image[~known] = np.nan
        return {
            'image': torch.from_numpy(image),
            'valid': torch.from_numpy(valid),
            'block': torch.tensor(number),
            'inside': torch.tensor([top - rows[0], left - columns[0]]),
        }

    def _span(self, first: int, length: int) -> tuple[int, int]:
        """Return the range that the windows touching a block cover."""
        last = min(first + self.block, length)
        starts = window_starts(length, self.size, self.stride)
        touching = [i for i in starts if i < last and i + self.size > first]
        return touching[0], min(touching[-1] + self.size, length)
