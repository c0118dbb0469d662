"""One scene of a listing."""

from typing import NamedTuple


class Scene(NamedTuple):
    """One scene.

    `path` is a file or the XML of a virtual raster, `time` is in ISO format or empty,
    and `mask` is the file of its cloud mask.
    """

    name: str
    path: str
    time: str = ''
    mask: str | None = None
