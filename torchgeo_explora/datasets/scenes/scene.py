"""A scene: one raster, when it was taken, and where its clouds are."""

import os
import re
from typing import NamedTuple

# A day, and perhaps a time: 20200131, 2020-01-31, 20200131T102030.
_DATE = re.compile(
    r'(?<!\d)((?:19|20)\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])'
    r'(?:T([01]\d|2[0-3]):?([0-5]\d)?:?([0-5]\d)?)?(?!\d)'
)


class Scene(NamedTuple):
    """One scene.

    `path` is a file or the XML of a virtual raster, `time` is in ISO format or empty,
    `mask` the file of its cloud mask.
    """

    name: str
    path: str
    time: str = ''
    mask: str | None = None


def file_scene(path: str, mask: str | None = None) -> Scene:
    """Return a file as a scene.

    Args:
        path: The file, whose name may hold a day.
        mask: What stands in place of its suffix in the name of its cloud mask.
    """
    stem = os.path.splitext(path)[0]
    return Scene(path, path, find_time(os.path.basename(path)), mask and stem + mask)


def find_time(name: str) -> str:
    """Return the first day (and time) in a file's name in ISO format, '' if none."""
    match = _DATE.search(name)
    if match is None:
        return ''
    year, month, day, hour, minute, second = match.groups('00')
    return f'{year}-{month}-{day}T{hour}:{minute}:{second}'
