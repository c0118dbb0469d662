"""Cloud-optimised GeoTIFFs."""

import os
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioIOError

# A block of all bands is held while it is written.
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
    without data count for neither. Embeddings are compressed in the fastest way: the
    best one takes half as long again and saves 7 %.

    Args:
        source: The GeoTIFF.
        target: The file to write; one that is there is replaced.

    Raises:
        RasterioIOError: If it cannot be written.
    """
    with rasterio.open(source, driver='GTiff') as file:
        classes = file.dtypes[0] == 'uint8'
        side = block_side(file.count, file.dtypes[0])
    options = {'PREDICTOR': 'YES'} if classes else {'LEVEL': 1}
    try:
        rasterio.shutil.copy(
            source,
            target,
            driver='COG',
            BLOCKSIZE=side,
            COMPRESS='DEFLATE',
            OVERVIEW_RESAMPLING='MODE' if classes else 'AVERAGE',
            BIGTIFF='IF_SAFER',
            **options,
        )
    # Of a full disk, rasterio passes on GDAL's own error.
    except CPLE_BaseError as error:
        raise RasterioIOError(str(error)) from error
