"""Which bands of a raster are data, and whether a mask marks where there is data."""

from typing import NamedTuple

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader, MemoryFile
from rasterio.shutil import copy
from rasterio.windows import Window

from torchgeo_explora.datasets.pixels.raster_file import open_raster

# Side in pixels of the part that is read to recognise a mask: a block or two.
_SIDE = 64
# Share of values that are 0 or the maximum, from which a band counts as a mask: masks
# may have partly transparent edges, and pictures have many values.
_TWO_VALUES = 0.5


class Layout(NamedTuple):
    """Bands of an open raster.

    `bands` are the numbers of those that are data, from 1. `marked` is whether a mask
    beside the values tells where there is no data: an alpha band, a mask inside the
    file or one in a `.msk` file.
    """

    bands: list[int]
    marked: bool


def find_layout(file: DatasetReader) -> Layout:
    """Return which bands are data, and whether there is a mask.

    A band that is labelled as alpha is the mask, unless it has another name or the
    values of a picture: GDAL gives this label to the fourth of four byte bands, which
    often is near infrared.

    Raises:
        RasterioError: If the band labelled as alpha cannot be read.
    """
    # Fetched once: each access asks GDAL about every band.
    colours, names = file.colorinterp, file.descriptions
    alpha = [
        number
        for number, colour, name in zip(file.indexes, colours, names, strict=True)
        if colour == ColorInterp.alpha
        and (name or 'alpha').lower() == 'alpha'
        and (file.driver == 'PNG' or _has_two_values(file, number))
    ]
    if len(alpha) == file.count:
        alpha = []
    flags = file.mask_flag_enums[0]
    marked = MaskFlags.per_dataset in flags
    if MaskFlags.alpha in flags:
        marked = bool(alpha)
    return Layout([number for number in file.indexes if number not in alpha], marked)


def with_true_alpha(file: DatasetReader) -> DatasetReader:
    """Return a raster whose bands are labelled as alpha only if they are a mask.

    When GDAL warps, it drops what alpha hides, and near infrared may be 0 on water.

    Args:
        file: An open raster, which is closed if another one is returned.
    """
    if ColorInterp.alpha not in file.colorinterp or find_layout(file).marked:
        return file
    with file, MemoryFile(ext='.vrt') as memory:
        copy(file, memory.name, driver='VRT')
        xml = memory.read().decode()
    labels = '<ColorInterp>Alpha</ColorInterp>', '<ColorInterp>Undefined</ColorInterp>'
    return open_raster(xml.replace(*labels))


def _has_two_values(file: DatasetReader, band: int) -> bool:
    """Return whether the middle of a band is mostly 0 and one other value."""
    height, width = (min(side, _SIDE) for side in (file.height, file.width))
    left, top = (file.width - width) // 2, (file.height - height) // 2
    values = file.read(band, window=Window(left, top, width, height))
    return bool(np.isin(values, (0, values.max())).mean() >= _TWO_VALUES)
