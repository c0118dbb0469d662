"""The index of scenes: their contents, and where a window can be cut out."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError, naming
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.datasets.scenes.coverage import positions, visible_shares
from torchgeo_explora.datasets.scenes.owners import add_owners
from torchgeo_explora.datasets.scenes.raster_dataset import Scenes
from torchgeo_explora.datasets.scenes.scene import Scene
from torchgeo_explora.datasets.tables.index_file import TableFile, file_stamp
from torchgeo_explora.datasets.tables.problems import with_notes

_UNREADABLE = 'unreadable scenes'
_NO_BAND = 'files without bands, such as containers of others'
_NOT_EARTH = 'scenes whose coordinate system is not one of the Earth'
_OUTSIDE = 'scenes outside the area of their coordinate system'
_NO_PLACE = 'scenes without georeference'
_NO_MASK = 'scenes without a cloud mask that fits'
_OTHER_BANDS = 'scenes without the bands of most others'
_OTHER_TYPE = 'scenes of another data type than most others'
EMPTY = 'scenes without a usable window'
#: Problems of the data, as opposed to clouds.
FAULTS = (
    _UNREADABLE,
    _NO_BAND,
    _NO_PLACE,
    _NOT_EARTH,
    _OUTSIDE,
    _NO_MASK,
    _OTHER_BANDS,
    _OTHER_TYPE,
)

_SCHEMA = pa.schema(
    {
        'name': pa.string(),
        'path': pa.string(),
        'time': pa.string(),
        'crs': pa.string(),
        'bands': pa.list_(pa.int16()),
        'origin': pa.list_(pa.float64(), 2),
        'pixel': pa.list_(pa.float64(), 2),
        'scale': pa.float64(),
        'bounds': pa.list_(pa.float64(), 4),
        'shape': pa.list_(pa.int32(), 2),
        'windows': pa.int64(),
        'usable': pa.large_binary(),
    }
)


@dataclass(frozen=True)
class Cutting:
    """How windows are cut out of scenes.

    `crs` is the coordinate system that scenes are warped to, their own if None; `res`
    is the side of a pixel in its units, the scene's if None; `bands` are names or
    numbers of the bands, all if None. `cloud_values` are the values of the mask that
    cannot be used, all except 0 if None; `max_invalid` is the largest share of a window
    without data or under clouds; `step` is the distance in pixels between the positions
    that are examined.
    """

    size: int
    crs: str | None
    res: float | None
    bands: tuple[int | str, ...] | None
    nodata: float | None
    cloud_values: tuple[int, ...] | None
    max_invalid: float
    step: int


# Mistaking metres for degrees, or the reverse, is a factor of 100,000.
_FINEST = 1e-3


class _Unfit(Exception):
    """A scene cannot be used; the message says why."""


def open_scene_index(
    scenes: Sequence[Scene],
    problems: Sequence[tuple[str, str]],
    cutting: Cutting,
    path: str,
    any_type: bool,
) -> TableFile:
    """Open the index of scenes, or build it.

    Args:
        scenes: The scenes.
        problems: (name, problem) of other scenes that were listed.
        cutting: How windows are cut out.
        path: File of the index.
        any_type: Whether scenes may differ in their data type.

    Returns:
        A table with `_SCHEMA` and owners, one row per scene, with the notes `bands`
        (names) and `dtype` and those of `with_notes`. `usable` are packed bits for the
        `shape` positions that a window can have, `step` pixels apart. `origin` is the
        upper left corner on the scene's grid and `pixel` the size of a window's pixel,
        both in units of `crs`; the pixel is `scale` times that of the scene, whose
        extent is `bounds`.
    """
    source = {
        'scenes': [
            [*scene, file_stamp(scene.path), file_stamp(scene.mask or '')]
            for scene in scenes
        ],
        'cutting': asdict(cutting),
        'any_type': any_type,
        'version': 3,
    }
    return TableFile(
        path,
        source,
        lambda: _build(scenes, list(problems), cutting, path, any_type),
    )


def _build(
    scenes: Sequence[Scene],
    problems: list[tuple[str, str]],
    cutting: Cutting,
    path: str,
    any_type: bool,
) -> pa.Table:
    listed = len(scenes) + len(problems)
    # GDAL works without Python's lock: threads read and decode side by side.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(_read_header, scenes))
    most = _choose([found for found in headers if isinstance(found, _Header)])
    wanted = _wanted(cutting.bands, most.bands) if most else ()

    def describe(scene: Scene, header: _Header | str) -> dict[str, Any] | str:
        if isinstance(header, str) or most is None:
            return str(header)
        try:
            return _describe(scene, header, cutting, wanted, most, any_type)
        except _Unfit as error:
            return str(error)

    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(describe, scenes, headers)
        bar = tqdm(found, 'index', len(scenes), unit=' scenes', disable=None)
        for scene, row in zip(scenes, bar, strict=True):
            if isinstance(row, str):
                problems.append((scene.name, row))
            elif not row['windows']:
                problems.append((scene.name, EMPTY))
            else:
                rows.append(row)
    table = add_owners(pa.Table.from_pylist(rows, _SCHEMA), cutting.size, cutting.step)
    known = {'bands': list(wanted), 'dtype': most.dtype if most else None}
    return with_notes(table, problems, listed, path, **known)


class _Header(NamedTuple):
    """What must be alike in all scenes, and whether the bands are described."""

    bands: tuple[str, ...]
    dtype: str
    described: bool


def _read_header(scene: Scene) -> _Header | str:
    """Return the header of a scene, or why it cannot be used."""
    try:
        with naming(scene.name), open_raster(scene.path) as file:
            if not file.count:
                return _NO_BAND
            described = all(file.descriptions)
            header = _Header(_names(file), file.dtypes[0], described)
            return _misplaced(file) or header
    except UnreadableImageError:
        return _UNREADABLE


def _choose(headers: Sequence[_Header]) -> _Header | None:
    """Return the first of the headers that most are like, None without any."""
    counts = Counter((frozenset(h.bands), h.dtype) for h in headers)
    return max(headers, key=lambda h: counts[frozenset(h.bands), h.dtype], default=None)


# The equatorial radius of the Earth is 6,378 km in all its models.
_RADII = (6.3e6, 6.45e6)
# Degrees by which a scene may leave the area that its coordinate system is made for.
_MARGIN = 15.0


def _misplaced(file: DatasetReader) -> str:
    """Return why a scene cannot be where its header says, '' if it can.

    Metres that are labelled as degrees would cover thousands of times the area of all
    other scenes, and so take nearly all of the windows.
    """
    if file.crs is None or file.transform.is_identity:
        # Ground control points may tell its place.
        return ''
    crs = CRS.from_wkt(file.crs.to_wkt())
    ellipsoid = crs.ellipsoid
    known = crs.is_geographic or crs.is_projected
    if not known or not ellipsoid:
        return _NOT_EARTH
    if not _RADII[0] < ellipsoid.semi_major_metre < _RADII[1]:
        return _NOT_EARTH
    left, right = sorted((file.bounds.left, file.bounds.right))
    bottom, top = sorted((file.bounds.bottom, file.bounds.top))
    if crs.is_geographic:
        inside = left > -361 and right < 361 and bottom > -91 and top < 91
        return '' if inside else _OUTSIDE
    degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    x, y = degrees.transform((left + right) / 2, (bottom + top) / 2)
    area = crs.area_of_use
    if not (math.isfinite(x) and math.isfinite(y)):
        return _OUTSIDE
    if area is None:
        return ''
    # An area across the date line ends to the west of where it starts.
    width = ((area.east - area.west) % 360 or 360) + 2 * _MARGIN
    within = width >= 360 or (x - area.west + _MARGIN) % 360 <= width
    if within and area.south - _MARGIN <= y <= area.north + _MARGIN:
        return ''
    return _OUTSIDE


def _describe(
    scene: Scene,
    header: _Header,
    cutting: Cutting,
    wanted: Sequence[str],
    most: _Header,
    any_type: bool,
) -> dict[str, Any]:
    """Return the row of a scene."""
    names = header.bands
    if header.dtype != most.dtype and not any_type:
        raise _Unfit(_OTHER_TYPE)
    if header.described and set(wanted) <= set(names):
        bands = [names.index(name) + 1 for name in wanted]
    elif len(names) == len(most.bands):
        bands = [most.bands.index(name) + 1 for name in wanted]
    else:
        raise _Unfit(_OTHER_BANDS)
    crs = None if cutting.crs is None else CRS.from_user_input(cutting.crs)
    try:
        grid = Scenes([scene], crs, cutting.nodata)
        handle = grid.handle(scene.path)
    except (ValueError, OSError, RasterioError, CPLE_BaseError, ProjError) as error:
        raise _Unfit(_NO_PLACE) from error
    scale = _scale(handle, cutting)
    try:
        with naming(scene.name):
            shares = visible_shares(
                handle,
                bands[0],
                cutting.step,
                scale,
                scene.mask,
                cutting.cloud_values,
            )
    except UnreadableImageError as error:
        unfit = _NO_MASK if scene.mask is not None else _UNREADABLE
        raise _Unfit(unfit) from error
    usable = positions(shares, cutting.size // cutting.step, cutting.max_invalid)
    return {
        'name': scene.name,
        'path': scene.path,
        'time': scene.time,
        'crs': handle.crs.to_string(),
        'bands': bands,
        'origin': [handle.transform.c, handle.transform.f],
        'pixel': [handle.transform.a * scale, -handle.transform.e * scale],
        'scale': scale,
        'bounds': list(handle.bounds),
        'shape': list(usable.shape),
        'windows': int(usable.sum()),
        'usable': np.packbits(usable).tobytes(),
    }


def _scale(handle: DatasetReader | WarpedVRT, cutting: Cutting) -> float:
    """Return how many pixels of the file a pixel of the window is.

    Raises:
        ValueError: If *res* is so small that it must be in other units.
    """
    if cutting.res is None:
        return 1.0
    scale = cutting.res / handle.res[0]
    if scale < _FINEST:
        raise ValueError(
            f'*res* is {cutting.res} units of {handle.crs.to_string()}, where a pixel'
            f' of the scene has {handle.res[0]}: pass it in these units'
        )
    return scale


def _names(file: DatasetReader) -> tuple[str, ...]:
    """Return the name of each band: its description, its colour or its number."""
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    return tuple(
        description or (colour.name if colour in colours else str(number))
        for number, description, colour in zip(
            file.indexes, file.descriptions, file.colorinterp, strict=True
        )
    )


def _wanted(
    bands: tuple[int | str, ...] | None, have: Sequence[str]
) -> tuple[str, ...]:
    if bands is None:
        return tuple(have)
    names = []
    for band in bands:
        if isinstance(band, str) and band in have:
            names.append(band)
        elif isinstance(band, int) and 1 <= band <= len(have):
            names.append(have[band - 1])
        else:
            raise ValueError(
                f'band {band!r} is not in the first scene, which has the bands'
                f' {", ".join(have)}: *bands* takes these names, or numbers from 1'
            )
    return tuple(names)
