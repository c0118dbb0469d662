"""Cloud-optimised GeoTIFFs."""

import os

import rasterio
import rasterio.shutil

# A block of all bands is held while it is written.
_LARGEST = 2**24


def write_cog(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a GeoTIFF as a cloud-optimised one, with overviews.

    Overviews of 8-bit classes have the most frequent class, others the mean. Pixels
    without data count for neither.

    Args:
        source: The GeoTIFF.
        target: The file to write; one that is there is replaced.

    Raises:
        RasterioError: If it cannot be written.
    """
    with rasterio.open(source) as file:
        classes = file.dtypes[0] == 'uint8'
        value = file.count * (1 if classes else 4)
    side = next(s for s in (512, 256, 128, 64) if value * s**2 <= _LARGEST or s == 64)
    rasterio.shutil.copy(
        source,
        target,
        driver='COG',
        BLOCKSIZE=side,
        COMPRESS='DEFLATE',
        PREDICTOR='YES',
        OVERVIEW_RESAMPLING='MODE' if classes else 'AVERAGE',
        BIGTIFF='IF_SAFER',
    )
