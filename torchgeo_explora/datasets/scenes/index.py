"""The index of scenes: their contents, and where a window can be cut out."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError, naming
from torchgeo_explora.datasets.pixels.masks import find_layout
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.datasets.scenes.coverage import positions, visible_shares
from torchgeo_explora.datasets.scenes.owners import add_owners
from torchgeo_explora.datasets.scenes.place import (
    NO_PLACE,
    NOT_EARTH,
    ONLY_RPCS,
    OTHER_SCALE,
    OUTSIDE,
    examine_place,
    fits,
    usual_pixel,
)
from torchgeo_explora.datasets.scenes.raster_dataset import Scenes
from torchgeo_explora.datasets.scenes.scene import Scene
from torchgeo_explora.datasets.tables.index_file import TableFile, file_stamp
from torchgeo_explora.datasets.tables.problems import with_notes

_UNREADABLE = 'unreadable scenes'
_NO_BAND = 'files without bands, such as containers of others'
_NO_GRID = 'scenes that cannot be brought to *crs*'
_OTHER_UNITS = 'scenes with pixels over 1,000 times larger than *res*'
_TOO_LARGE = 'scenes that need more memory than there is: cut them, or give *res*'
_NO_MASK = 'scenes without a cloud mask that fits'
_OTHER_BANDS = 'scenes without the bands of most others'
_OTHER_TYPE = 'scenes of another data type than most others'
EMPTY = 'scenes without a usable window'
#: Problems of the data, as opposed to clouds.
FAULTS = (
    _UNREADABLE,
    _NO_BAND,
    NO_PLACE,
    ONLY_RPCS,
    NOT_EARTH,
    OUTSIDE,
    OTHER_SCALE,
    _NO_GRID,
    _OTHER_UNITS,
    _TOO_LARGE,
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
        'marked': pa.bool_(),
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
# Bytes of memory for each position of a window.
_POSITION = 24

# What GDAL, PROJ and a lack of memory raise for one scene.
_FAILURES = (
    ValueError,
    OSError,
    RuntimeError,
    MemoryError,
    RasterioError,
    CPLE_BaseError,
    ProjError,
)


class _Unfit(Exception):
    """A scene cannot be used; the message says why."""


class _UnitsError(Exception):
    """The pixels of a scene are so much larger than *res* that its units differ."""


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
        (names), `dtype`, `extremes` (lowest and highest values of each band in a few
        windows, or None) and those of `with_notes`. `usable` are packed bits for the
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
        'version': 4,
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
    readable = [found for found in headers if isinstance(found, _Header)]
    most = _choose(readable)
    wanted = _wanted(cutting.bands, most.bands) if most else ()
    usual = usual_pixel([header.metres for header in readable]) if readable else 0.0
    units: list[str] = []

    def describe(scene: Scene, header: _Header | str) -> dict[str, Any] | str:
        if isinstance(header, str) or most is None:
            return str(header)
        if not fits(header.metres, usual):
            return OTHER_SCALE
        try:
            return _describe(scene, header, cutting, wanted, most, any_type)
        except _UnitsError as error:
            units.append(str(error))
            return _OTHER_UNITS
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
    if units and not rows:
        raise ValueError(units[0])
    table = add_owners(pa.Table.from_pylist(rows, _SCHEMA), cutting.size, cutting.step)
    known = {
        'bands': list(wanted),
        'dtype': most.dtype if most else None,
        'extremes': _extremes(rows, cutting),
    }
    return with_notes(table, problems, listed, path, **known)


class _Header(NamedTuple):
    """What must be the same in all scenes, and how to read a scene.

    `numbers` are those of the bands in the file; `marked` is that of `Layout`;
    `described` is whether the bands have descriptions; `metres` is the side of a pixel.
    """

    bands: tuple[str, ...]
    dtype: str
    numbers: tuple[int, ...]
    marked: bool
    described: bool
    metres: float


def _read_header(scene: Scene) -> _Header | str:
    """Return the header of a scene, or why it cannot be used."""
    try:
        with naming(scene.name), open_raster(scene.path) as file:
            if not file.count:
                return _NO_BAND
            metres = examine_place(file)
            if isinstance(metres, str):
                return metres
            numbers, marked = find_layout(file)
            bands, described = _names(file, numbers)
            kind = file.dtypes[0]
            return _Header(bands, kind, tuple(numbers), marked, described, metres)
    except UnreadableImageError:
        return _UNREADABLE
    except (CPLE_BaseError, ProjError):
        return NO_PLACE


def _choose(headers: Sequence[_Header]) -> _Header | None:
    """Return the first header of the most common kind, None if there is none."""
    counts = Counter((frozenset(h.bands), h.dtype) for h in headers)
    return max(headers, key=lambda h: counts[frozenset(h.bands), h.dtype], default=None)


def _describe(
    scene: Scene,
    header: _Header,
    cutting: Cutting,
    wanted: Sequence[str],
    most: _Header,
    any_type: bool,
) -> dict[str, Any]:
    """Return the row of a scene."""
    bands = _numbers(header, wanted, most, any_type)
    crs = None if cutting.crs is None else CRS.from_user_input(cutting.crs)
    try:
        grid = Scenes([scene], crs, cutting.nodata)
        handle = grid.handle(scene.path)
    except _FAILURES as error:
        raise _Unfit(NO_PLACE if crs is None else _NO_GRID) from error
    scale = _scale(handle, cutting)
    cells = handle.width * handle.height / (cutting.step * scale) ** 2
    if cells * _POSITION > _memory():
        raise _Unfit(_TOO_LARGE)
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
        usable = positions(shares, cutting.size // cutting.step, cutting.max_invalid)
    except MemoryError as error:
        raise _Unfit(_TOO_LARGE) from error
    except _FAILURES as error:
        unfit = _NO_MASK if scene.mask is not None else _UNREADABLE
        raise _Unfit(unfit) from error
    return {
        'name': scene.name,
        'path': scene.path,
        'time': scene.time,
        'crs': handle.crs.to_string(),
        'bands': bands,
        'marked': header.marked,
        'origin': [handle.transform.c, handle.transform.f],
        'pixel': [handle.transform.a * scale, -handle.transform.e * scale],
        'scale': scale,
        'bounds': list(handle.bounds),
        'shape': list(usable.shape),
        'windows': int(usable.sum()),
        'usable': np.packbits(usable).tobytes(),
    }


def _extremes(
    rows: Sequence[dict[str, Any]], cutting: Cutting
) -> list[list[float]] | None:
    """Return the lowest and the highest values of each band in a few windows."""
    found = []
    for number in sorted({0, len(rows) // 2} & set(range(len(rows)))):
        row = rows[number]
        bits = np.unpackbits(np.frombuffer(row['usable'], np.uint8))
        places = np.flatnonzero(bits)
        top, left = divmod(int(places[len(places) // 2]), row['shape'][1])
        step, side = cutting.step * row['scale'], cutting.size * row['scale']
        window = Window(left * step, top * step, side, side)
        crs = None if cutting.crs is None else CRS.from_user_input(cutting.crs)
        scene = Scene(row['name'], row['path'], row['time'])
        try:
            values = Scenes([scene], crs, cutting.nodata).read_window(
                row['path'], row['bands'], window, cutting.size, row['marked']
            )
        except UnreadableImageError:
            continue
        found.append([values.min((1, 2)), values.max((1, 2))])
    if not found:
        return None
    lowest, highest = np.stack(found, 1).astype(float)
    return [lowest.min(0).tolist(), highest.max(0).tolist()]


def _memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _scale(handle: DatasetReader | WarpedVRT, cutting: Cutting) -> float:
    """Return how many pixels of the file a pixel of the window spans.

    Raises:
        _UnitsError: If *res* is so small that it must be in other units.
    """
    if cutting.res is None:
        return 1.0
    scale = cutting.res / handle.res[0]
    if scale < _FINEST:
        raise _UnitsError(
            f'*res* is {cutting.res} units of {handle.crs.to_string()}, where a pixel'
            f' of the scene has {handle.res[0]}: pass it in these units'
        )
    return scale


def _names(file: DatasetReader, numbers: Sequence[int]) -> tuple[tuple[str, ...], bool]:
    """Return the name of each band, and whether all are the file's descriptions.

    A band without a description is named by its colour, or by its number.
    """
    known = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    # Fetched once: each access asks GDAL about every band.
    descriptions, colours = file.descriptions, file.colorinterp
    names = tuple(
        descriptions[i - 1]
        or (colours[i - 1].name if colours[i - 1] in known else str(i))
        for i in numbers
    )
    return names, all(descriptions[i - 1] for i in numbers)


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


def _numbers(
    header: _Header, wanted: Sequence[str], most: _Header, any_type: bool
) -> list[int]:
    """Return the numbers of the wanted bands in a scene."""
    names = header.bands
    if header.dtype != most.dtype and not any_type:
        raise _Unfit(_OTHER_TYPE)
    if header.described and set(wanted) <= set(names):
        chosen = [names.index(name) for name in wanted]
    elif len(names) == len(most.bands):
        chosen = [most.bands.index(name) for name in wanted]
    else:
        raise _Unfit(_OTHER_BANDS)
    return [header.numbers[index] for index in chosen]


class Selection(NamedTuple):
    """Scenes that fit each other: the numbers of the bands in each, and their names.

    `problems` are (name, problem) of those that do not fit or cannot be read.
    """

    scenes: list[Scene]
    numbers: list[list[int]]
    bands: tuple[str, ...]
    dtype: str
    problems: list[tuple[str, str]]


def select_scenes(
    scenes: Sequence[Scene], bands: Sequence[int | str] | None, any_type: bool
) -> Selection:
    """Find the bands of scenes, from their headers only.

    Args:
        scenes: The scenes.
        bands: Names or numbers of the bands, all if None.
        any_type: Whether scenes may differ in their data type.

    Raises:
        ValueError: If a band is in no scene.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(_read_header, scenes))
    most = _choose([found for found in headers if isinstance(found, _Header)])
    named = None if bands is None or most is None else tuple(bands)
    wanted = _wanted(named, most.bands if most else ())
    chosen = Selection([], [], wanted, most.dtype if most else '', [])
    for scene, header in zip(scenes, headers, strict=True):
        if isinstance(header, str) or most is None:
            chosen.problems.append((scene.name, str(header)))
            continue
        try:
            numbers = _numbers(header, wanted, most, any_type)
        except _Unfit as error:
            chosen.problems.append((scene.name, str(error)))
            continue
        chosen.scenes.append(scene)
        chosen.numbers.append(numbers)
    return chosen
