"""Where on the Earth a scene is, and whether it can really be there."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from rasterio.crs import CRS as RasterCRS
from rasterio.io import DatasetReader
from rasterio.transform import from_gcps

NO_PLACE = 'scenes without georeference'
ONLY_RPCS = 'scenes that have RPCs only: orthorectify them first'
NOT_EARTH = 'scenes whose coordinate system is not one of the Earth'
OUTSIDE = 'scenes outside the area of their coordinate system'
OTHER_SCALE = (
    'scenes with pixels more than 10,000 times larger or smaller than those of most'
    ' others'
)

# The equatorial radius of the Earth is 6,378 km in all its models.
_RADIUS = 6.378e6
_RADII = (6.3e6, 6.45e6)
# Degrees by which a scene may exceed the area that its coordinate system is made for.
_MARGIN = 15.0
# A scene is examined in the middle of 5 x 5 parts.
_PARTS = 5
# Mistaking metres for degrees, or the reverse, is a factor of 100,000.
_FACTOR = 10_000


# West, south, east and north in degrees.
type _Area = tuple[float, float, float, float]


class Place(NamedTuple):
    """A coordinate system, and the transform to it from pixels."""

    crs: RasterCRS
    transform: Affine


def georeference(file: DatasetReader) -> Place | None:
    """Return where a file says it is, from its transform or ground control points."""
    if file.crs is not None and not file.transform.is_identity:
        return Place(file.crs, file.transform)
    points, crs = file.gcps
    # Three points that are not on a line determine a transform.
    if crs is None or len(points) < 3:
        return None
    return Place(crs, from_gcps(points))


def examine_place(file: DatasetReader) -> str | float:
    """Return the side of a scene's pixels in metres, or why it cannot be there.

    Most of a scene must lie within the area that its coordinate system is made for.
    """
    place = georeference(file)
    if place is None:
        return NO_PLACE if file.rpcs is None else ONLY_RPCS
    if not abs(place.transform.determinant) > 0:
        return NO_PLACE if np.isfinite(tuple(place.transform)).all() else OUTSIDE
    degrees, geographic, area = _system(place.crs.to_wkt())
    if degrees is None:
        return NOT_EARTH
    # The middles of parts: the corners of a view of the whole Earth are not on it.
    rows, columns = (np.mgrid[:_PARTS, :_PARTS] + 0.5) / _PARTS
    x, y = place.transform @ np.stack([columns * file.width, rows * file.height])
    longitudes, latitudes = degrees.transform(x, y)
    inside = np.isfinite(longitudes) & np.isfinite(latitudes)
    if geographic:
        # No part of such a scene may be elsewhere.
        inside &= bool((np.abs(x) < 361).all() and (np.abs(y) < 91).all())
    else:
        # Far from the area that a projection is made for, several places coincide.
        back = degrees.transform(longitudes, latitudes, direction='INVERSE')
        with np.errstate(invalid='ignore'):
            error = np.hypot(back[0] - x, back[1] - y)
            inside &= error < 0.01 * np.hypot(np.ptp(x), np.ptp(y)) + 1e-3
    if area is not None:
        inside &= _within(area, longitudes, latitudes)
    if inside.mean() <= 0.5:
        return OUTSIDE
    middle = on_sphere(longitudes[1:4:2, 1:4:2], latitudes[1:4:2, 1:4:2])
    right, down = middle[0, 1] - middle[0, 0], middle[1, 0] - middle[0, 0]
    pixels = file.width * file.height * (2 / _PARTS) ** 2
    return float(_RADIUS * np.sqrt(np.linalg.norm(np.cross(right, down)) / pixels))


@lru_cache
def _system(wkt: str) -> tuple[Transformer | None, bool, _Area | None]:
    """Return the transform to degrees, whether already in degrees, and the area.

    The transform is None if the system is not one of the Earth.
    """
    crs = CRS.from_wkt(wkt)
    ellipsoid = crs.ellipsoid
    if not (crs.is_geographic or crs.is_projected) or ellipsoid is None:
        return None, False, None
    if not _RADII[0] < ellipsoid.semi_major_metre < _RADII[1]:
        return None, False, None
    degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    # The text in a file has no area, but the authority code that it mentions has one.
    number = None if crs.is_geographic else crs.to_authority()
    area = None if number is None else CRS.from_authority(*number).area_of_use
    return degrees, crs.is_geographic, None if area is None else area.bounds


def _within(
    area: _Area, longitudes: NDArray[np.float64], latitudes: NDArray[np.float64]
) -> NDArray[np.bool_]:
    west, south, east, north = area
    # An area across the date line ends to the west of where it starts.
    width = ((east - west) % 360 or 360) + 2 * _MARGIN
    with np.errstate(invalid='ignore'):
        right = (longitudes - west + _MARGIN) % 360
        high = np.abs(latitudes - (south + north) / 2)
    tallest = (north - south) / 2 + _MARGIN
    return ((right <= width) | (width >= 360)) & (high <= tallest)


def on_sphere(
    longitudes: NDArray[np.float64], latitudes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return places in degrees as unit vectors, (..., 3)."""
    east, north = np.radians(longitudes), np.radians(latitudes)
    level = np.cos(north)
    return np.stack(
        [level * np.cos(east), level * np.sin(east), np.sin(north)], axis=-1
    )


def usual_pixel(sides: Sequence[float]) -> float:
    """Return the median side of the pixels of scenes, in metres."""
    return sorted(sides)[(len(sides) - 1) // 2]


def fits(side: float, usual: float) -> bool:
    """Return whether pixels are within orders of magnitude of the usual size.

    A single scene with metres that are labelled as degrees would cover thousands of
    times the area of all others, and so take nearly all of the windows.
    """
    return usual / _FACTOR <= side <= usual * _FACTOR
