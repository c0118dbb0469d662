"""Cloud-optimised GeoTIFFs."""

import os
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError

# A block of all bands is held in memory while it is written.
_LARGEST = 2**24


def block_side(count: int, dtype: Any) -> int:
    """Return the side of the blocks of a cloud-optimised GeoTIFF.

    A source with blocks of this side is read once, with little memory.

    Args:
        count: Number of bands.
        dtype: Type of the values.
    """
    value = count * np.dtype(dtype).itemsize
    sides = (512, 256, 128)
    return next((side for side in sides if value * side**2 <= _LARGEST), 64)


def write_cog(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a GeoTIFF as a cloud-optimised one, with overviews.

    Overviews of 8-bit classes have the most frequent class, others the mean. Pixels
    without data count for neither. Embeddings are compressed by Zstandard at its
    fastest: it takes a quarter of the time of Deflate, and files are equally large.

    The overviews are built in the source, band by band. The driver of cloud-optimised
    files, which keeps all bands of a pixel together, would take 40 times as long for
    192 bands.

    Args:
        source: The GeoTIFF, whose bands lie one after the other; it gets overviews.
        target: The file to write; an existing one is replaced.

    Raises:
        RasterioIOError: If it cannot be written.
    """
    with rasterio.open(source, 'r+', driver='GTiff') as file:
        classes = file.dtypes[0] == 'uint8'
        side = block_side(file.count, file.dtypes[0])
        levels = _levels(max(file.height, file.width), side)
        if levels:
            way = Resampling.mode if classes else Resampling.average
            file.build_overviews(levels, way)
    options: dict[str, Any] = (
        {'COMPRESS': 'DEFLATE', 'PREDICTOR': 'YES'}
        if classes
        else {'COMPRESS': 'ZSTD', 'LEVEL': 1}
    )
    try:
        rasterio.shutil.copy(
            source,
            target,
            driver='COG',
            BLOCKSIZE=side,
            BIGTIFF='IF_SAFER',
            **options,
        )
    # If the disk is full, rasterio passes on GDAL's own error.
    except CPLE_BaseError as error:
        raise RasterioIOError(str(error)) from error


def _levels(longest: int, side: int) -> list[int]:
    """Return 2, 4, 8 ... until a whole overview fits into a block."""
    levels, level = [], 1
    while longest > side * level:
        level *= 2
        levels.append(level)
    return levels
