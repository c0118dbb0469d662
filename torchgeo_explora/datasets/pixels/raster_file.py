"""Raster files, opened only as the type that their names say."""

import os
import warnings

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
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

# The spectrometers in orbit have fewer than 500 bands. The time that GDAL needs grows
# with the square of their number.
_MOST_BANDS = 4096

# Uncompressed bytes that a file may claim for each byte it has: codecs reach a
# thousand, some ten thousand if all pixels are equal. Smaller images are read in any
# case.
_MOST_EXPANSION = 20_000
_SMALL = 2**28

# GDAL would wait forever for a server that falls silent. Seconds to wait for a
# connection, and seconds during which less than a byte per second is tolerated.
_PATIENCE = {
    'GDAL_HTTP_CONNECTTIMEOUT': '10',
    'GDAL_HTTP_LOW_SPEED_TIME': '10',
    'GDAL_HTTP_LOW_SPEED_LIMIT': '1',
}


def raster_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a path or an address in lower case, with its dot."""
    name = os.fspath(path)
    if '://' in name or name.startswith('/vsi'):
        # A signed address ends with its signature.
        name = name.partition('?')[0]
    return os.path.splitext(name)[1].lower()


def open_raster(path: str | os.PathLike[str]) -> DatasetReader:
    """Open a raster to read it, only as the kind of file that its suffix names.

    rasterio's warning about a raster without a place on Earth is suppressed: a plain
    image needs none, and a caller that needs one says so.

    Args:
        path: A file, an address or the XML of a virtual raster. For suffixes that are
            not those of images, GDAL chooses the driver.

    Raises:
        RasterioIOError: If it cannot be opened as such, has thousands of bands, or
            claims far more pixels than its bytes can hold.
        OSError: If it is a pipe or a device.
    """
    # As options of a rasterio environment, they would not apply to the files of a
    # virtual raster, which are opened only when they are read.
    for option, value in _PATIENCE.items():
        os.environ.setdefault(option, value)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        return _open_checked(path)


def _open_checked(path: str | os.PathLike[str]) -> DatasetReader:
    if os.fspath(path).startswith('<'):
        return _check(rasterio.open(path, driver='VRT'), os.fspath(path))
    refuse_pipe(path)
    driver = _DRIVERS.get(raster_suffix(path))
    if not os.path.isfile(path):
        return _check(rasterio.open(path, driver=driver), os.fspath(path))
    # TorchGeo's command tells GDAL that no file has others beside it, which is quick
    # for addresses, but would hide masks and overviews in separate files.
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='TRUE'):
        file = _check(rasterio.open(path, driver=driver), os.fspath(path))
    if raster_suffix(path) in OWN_PIXELS:
        _check_claim(file, os.path.getsize(path))
    return file


def refuse_pipe(path: str | os.PathLike[str]) -> None:
    """Raise if a path is a pipe or a device, which may wait forever when it is opened.

    Raises:
        OSError: If it is.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(f'{os.fspath(path)} is a pipe or a device, not a plain file')


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


def _check_claim(file: DatasetReader, size: int) -> None:
    """Close and refuse a file that is damaged or as good as empty.

    Reading all of its pixels would take hours.
    """
    itemsize = np.dtype(file.dtypes[0]).itemsize
    claimed = file.count * itemsize * file.width * file.height
    if claimed > max(_SMALL, size * _MOST_EXPANSION):
        file.close()
        raise RasterioIOError(
            f'{file.name} has {size} bytes and claims {file.count} bands of'
            f' {file.height} x {file.width} pixels: it is damaged, or nearly empty'
        )
