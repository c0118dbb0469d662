"""Several rasters combined as the bands of one."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from affine import Affine
from rasterio.crs import CRS
from rasterio.env import Env

from torchgeo_explora.datasets.pixels.raster_file import open_raster

#: GDAL's names of the types that can be stacked.
GDAL_TYPES = {
    'uint8': 'Byte',
    'int8': 'Int8',
    'uint16': 'UInt16',
    'int16': 'Int16',
    'uint32': 'UInt32',
    'int32': 'Int32',
    'float32': 'Float32',
    'float64': 'Float64',
}


#: Ratio and offset by which a stored value becomes another one.
type Line = tuple[float, float]


class Layout(NamedTuple):
    """Grid of a raster, and type of its bands."""

    crs: CRS
    width: int
    height: int
    transform: Affine
    dtypes: tuple[str, ...]
    nodata: float | None


def stack_bands(
    files: Mapping[str, str],
    item: str = '',
    layouts: Mapping[str, Layout] | None = None,
    lines: Mapping[str, Sequence[Line]] | None = None,
) -> str:
    """Return a GDAL virtual raster, as XML, that stacks the bands of files.

    The grid is that of the file with the smallest pixels; the others are resampled to
    it bilinearly. A band has the name of its file, with a number appended if the file
    has several bands.

    Args:
        files: Path of each raster, by name and in the order of the bands.
        item: Name of what the files belong to, for errors.
        layouts: Known layouts of files, by name; the others are opened.
        lines: Ratio and offset of each band, by the name of its file; if there is only
            one, it is for all bands of the file. Valid values stay valid: if 0 means no
            data, results below 1 become 1.

    Raises:
        RasterioIOError: If a file cannot be opened.
        ValueError: If the files have different coordinate systems, or values of a type
            that cannot be stacked.
    """
    known = layouts or {}
    sources = {name: known.get(name) or _look(path) for name, path in files.items()}
    systems = {str(source.crs) for source in sources.values()}
    if len(systems) > 1:
        raise ValueError(
            f'{", ".join(files)} are in {", ".join(sorted(systems))}: stack files'
            f' of one coordinate system'
        )
    best = min(sources.values(), key=lambda source: source.transform.a)
    root = ElementTree.Element('VRTDataset')
    root.set('item', item)
    root.set('rasterXSize', str(best.width))
    root.set('rasterYSize', str(best.height))
    ElementTree.SubElement(root, 'SRS').text = best.crs.to_wkt()
    ElementTree.SubElement(root, 'GeoTransform').text = ', '.join(
        repr(value) for value in best.transform.to_gdal()
    )
    for name, source in sources.items():
        given = list((lines or {}).get(name) or [(1.0, 0.0)])
        count = len(source.dtypes)
        for number in range(1, count + 1):
            title = name if count == 1 else f'{name}_{number}'
            line = given[number - 1] if len(given) == count else given[0]
            part = _add_band(root, source, number, title, line)
            file = ElementTree.SubElement(part, 'SourceFilename', relativeToVRT='0')
            file.text = files[name]
            ElementTree.SubElement(part, 'SourceBand').text = str(number)
            _add_place(part, source, best.transform)
    return ElementTree.tostring(root, encoding='unicode')


def item_of(path: str) -> str:
    """Return the item of a virtual raster of `stack_bands`, '' for any other path."""
    match = re.match(r'<VRTDataset item="([^"]*)"', path)
    return html.unescape(match[1]) if match else ''


def _look(path: str) -> Layout:
    with Env(GDAL_DISABLE_READDIR_ON_OPEN='TRUE'), open_raster(path) as source:
        return Layout(
            source.crs,
            source.width,
            source.height,
            source.transform,
            source.dtypes,
            source.nodata,
        )


def _add_band(
    root: ElementTree.Element, source: Layout, number: int, title: str, line: Line
) -> ElementTree.Element:
    """Add a band, and return its source, which lacks file and place."""
    dtype = source.dtypes[number - 1]
    if dtype not in GDAL_TYPES:
        raise ValueError(f'{title} holds {dtype} values, which cannot be stacked')
    band = ElementTree.SubElement(root, 'VRTRasterBand', dataType=GDAL_TYPES[dtype])
    ElementTree.SubElement(band, 'Description').text = title
    part = ElementTree.SubElement(band, 'ComplexSource', resampling='bilinear')
    if source.nodata is not None:
        ElementTree.SubElement(band, 'NoDataValue').text = repr(source.nodata)
        ElementTree.SubElement(part, 'NODATA').text = repr(source.nodata)
    ratio, offset = line
    if line == (1.0, 0.0):
        return part
    if source.nodata == 0 and dtype.startswith('uint'):
        # Straight lines between these points; beyond them, the values of the ends.
        most = 2 ** int(dtype.removeprefix('uint')) - 1
        first = (1 - offset) / ratio
        points = ((first, 1.0), (float(most), most * ratio + offset))
        ElementTree.SubElement(part, 'LUT').text = ','.join(
            f'{value!r}:{min(image, float(most))!r}' for value, image in points
        )
        return part
    ElementTree.SubElement(part, 'ScaleOffset').text = repr(offset)
    ElementTree.SubElement(part, 'ScaleRatio').text = repr(ratio)
    return part


def _add_place(part: ElementTree.Element, source: Layout, grid: Affine) -> None:
    place = source.transform
    _add_window(part, 'SrcRect', 0, 0, source.width, source.height)
    _add_window(
        part,
        'DstRect',
        (place.c - grid.c) / grid.a,
        (place.f - grid.f) / grid.e,
        source.width * place.a / grid.a,
        source.height * place.e / grid.e,
    )


def _add_window(
    part: ElementTree.Element,
    name: str,
    left: float,
    top: float,
    width: float,
    height: float,
) -> None:
    sides = {'xOff': left, 'yOff': top, 'xSize': width, 'ySize': height}
    ElementTree.SubElement(part, name, {key: str(v) for key, v in sides.items()})
