"""Raster files, opened as what their names say they are."""

import os

import rasterio
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader, MemoryFile

# GDAL looks at the contents of a file, not at its name: without a driver, a `.tif` may
# be the XML of a virtual raster or of a map service, which reads other files and
# fetches addresses.
_DRIVERS = {
    '.tif': 'GTiff',
    '.tiff': 'GTiff',
    '.jp2': 'JP2OpenJPEG',
    '.png': 'PNG',
    '.jpg': 'JPEG',
    '.jpeg': 'JPEG',
    '.webp': 'WEBP',
    '.vrt': 'VRT',
}
#: Suffixes of files that hold all of their pixels themselves.
OWN_PIXELS = tuple(suffix for suffix in _DRIVERS if suffix != '.vrt')

# The spectrometers in orbit have fewer than 500 bands. GDAL needs a time that grows
# with the square of their number.
_MOST_BANDS = 4096


def raster_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a path or an address in lower case, with its dot."""
    name = os.fspath(path)
    if '://' in name or name.startswith('/vsi'):
        # A signed address ends with its signature.
        name = name.partition('?')[0]
    return os.path.splitext(name)[1].lower()


def open_raster(path: str | os.PathLike[str]) -> DatasetReader:
    """Open a raster to read it, only as the kind of file that its suffix names.

    Args:
        path: A file, an address or the XML of a virtual raster. GDAL chooses the
            driver of files with other suffixes than those of images.

    Raises:
        RasterioIOError: If it cannot be opened as such, or has thousands of bands.
    """
    virtual = os.fspath(path).startswith('<')
    driver = 'VRT' if virtual else _DRIVERS.get(raster_suffix(path))
    return _check(rasterio.open(path, driver=driver), os.fspath(path))


def open_tiff(memory: MemoryFile) -> DatasetReader:
    """Open a TIFF in memory.

    Raises:
        RasterioIOError: If it is not a TIFF, or has thousands of bands.
    """
    return _check(memory.open(driver='GTiff'), memory.name)


def _check(file: DatasetReader, path: str) -> DatasetReader:
    if file.count > _MOST_BANDS:
        file.close()
        raise RasterioIOError(
            f'{path} has {file.count} bands, expected at most {_MOST_BANDS}: it is'
            f' damaged, or not an image'
        )
    return file
