"""Several rasters combined as the bands of one."""

from collections.abc import Mapping
from xml.etree import ElementTree

from affine import Affine
from rasterio.env import Env
from rasterio.io import DatasetReader

from torchgeo_explora.datasets.pixels.raster_file import open_raster

_GDAL_TYPES = {
    'uint8': 'Byte',
    'int8': 'Int8',
    'uint16': 'UInt16',
    'int16': 'Int16',
    'uint32': 'UInt32',
    'int32': 'Int32',
    'float32': 'Float32',
    'float64': 'Float64',
}


def stack_bands(files: Mapping[str, str]) -> str:
    """Return a GDAL virtual raster, as XML, that stacks the bands of files.

    The grid is that of the file with the smallest pixels; the others are resampled to
    it bilinearly. A band has the name of its file, with a number appended if the file
    has several bands.

    Args:
        files: Path of each raster, by name and in the order of the bands.

    Raises:
        RasterioIOError: If a file cannot be opened.
        ValueError: If the files have different coordinate systems.
    """
    with Env(GDAL_DISABLE_READDIR_ON_OPEN='TRUE'):
        sources = {name: open_raster(path) for name, path in files.items()}
    try:
        systems = {str(source.crs) for source in sources.values()}
        if len(systems) > 1:
            raise ValueError(
                f'{", ".join(files)} are in {", ".join(sorted(systems))}: stack files'
                f' of one coordinate system'
            )
        best = min(sources.values(), key=lambda source: source.transform.a)
        root = ElementTree.Element(
            'VRTDataset', rasterXSize=str(best.width), rasterYSize=str(best.height)
        )
        ElementTree.SubElement(root, 'SRS').text = best.crs.to_wkt()
        ElementTree.SubElement(root, 'GeoTransform').text = ', '.join(
            repr(value) for value in best.transform.to_gdal()
        )
        for name, source in sources.items():
            for number in source.indexes:
                title = name if source.count == 1 else f'{name}_{number}'
                _add_band(root, source, number, title, best.transform)
    finally:
        for source in sources.values():
            source.close()
    return ElementTree.tostring(root, encoding='unicode')


def _add_band(
    root: ElementTree.Element,
    source: DatasetReader,
    number: int,
    title: str,
    grid: Affine,
) -> None:
    kind = _GDAL_TYPES[source.dtypes[number - 1]]
    band = ElementTree.SubElement(root, 'VRTRasterBand', dataType=kind)
    ElementTree.SubElement(band, 'Description').text = title
    part = ElementTree.SubElement(band, 'ComplexSource', resampling='bilinear')
    if source.nodata is not None:
        ElementTree.SubElement(band, 'NoDataValue').text = repr(source.nodata)
        ElementTree.SubElement(part, 'NODATA').text = repr(source.nodata)
    file = ElementTree.SubElement(part, 'SourceFilename', relativeToVRT='0')
    file.text = source.name
    ElementTree.SubElement(part, 'SourceBand').text = str(number)
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
