"""The JSON file beside an fMoW image: boxes, time, place and view."""

import json
import math
from typing import Any, NamedTuple

# Boxes with a side of this many pixels or fewer show nothing: the baseline skips them.
_SMALLEST_SIDE = 2


class Box(NamedTuple):
    """An object: its class, None if not given, and [x, y, w, h] in pixels."""

    category: str | None
    xywh: tuple[int, int, int, int]


class Metadata(NamedTuple):
    """The contents of the file; empty if it has none."""

    boxes: tuple[Box, ...]
    timestamp: str
    place: str
    country: str = ''
    view: tuple[float, ...] = ()


#: Names in the file of the numbers in `Metadata.view`, by their key in a sample.
VIEW = {
    'gsd': 'gsd',
    'cloud_cover': 'cloud_cover',
    'sun_elevation': 'sun_elevation_dbl',
    'off_nadir': 'off_nadir_angle_dbl',
}


def read_sidecar(path: str) -> Metadata:
    """Read a metadata file.

    `bounding_boxes` is a list, or one object if there is a single box. Boxes with a
    side of 2 pixels or fewer are left out.

    Args:
        path: A `..._rgb.json` or `..._msrgb.json`.

    Returns:
        Boxes, the time as written, the place (longitude and latitude of the first box
        to 3 decimals, about 100 m), the country's code, and the numbers of `VIEW`, NaN
        where one is not given.

    Raises:
        ValueError: If the file is not a JSON object.
        OSError: If it cannot be opened.
    """
    with open(path, encoding='utf-8') as file:
        content = json.load(file)
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not an object')
    listed = content.get('bounding_boxes')
    boxes, place = [], ''
    for item in listed if isinstance(listed, list) else [listed]:
        if not isinstance(item, dict):
            continue
        xywh = _xywh(item.get('box'))
        if xywh is None:
            continue
        place = place or centre(item.get('raw_location'))
        if min(xywh[2:]) > _SMALLEST_SIDE:
            category = item.get('category')
            boxes.append(Box(None if category is None else str(category), xywh))
    return Metadata(
        tuple(boxes),
        str(content.get('timestamp') or ''),
        place,
        str(content.get('country_code') or '').upper(),
        tuple(_number(content.get(name)) for name in VIEW.values()),
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _xywh(values: Any) -> tuple[int, int, int, int] | None:
    try:
        x, y, width, height = (int(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = max(map(abs, (x, y, width, height))) < 2**31
    return (x, y, width, height) if fits else None


def centre(polygon: Any) -> str:
    """Return the middle of a 'POLYGON ((lon lat, ...))', '' if it is not one.

    Returns:
        Longitude and latitude to 3 decimals, about 100 m.
    """
    _, _, text = str(polygon or '').partition('((')
    try:
        points = [
            [float(value) for value in point.split()]
            for point in text.partition(')')[0].split(',')
        ]
        longitudes, latitudes = zip(*(point[:2] for point in points), strict=True)
    except ValueError:
        return ''
    middle = [(min(v) + max(v)) / 2 for v in (longitudes, latitudes)]
    return f'{middle[0]:.3f} {middle[1]:.3f}'
