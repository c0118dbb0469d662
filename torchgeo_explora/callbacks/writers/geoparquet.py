"""Columns and metadata of GeoParquet 1.1.

https://geoparquet.org/releases/v1.1.0/
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import shapely  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

_SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


def output_crs(systems: Sequence[str], wanted: str | None = None) -> CRS:
    """Return the coordinate system of a column of geometries.

    Args:
        systems: Coordinate systems of the scenes.
        wanted: The one that the user asked for.

    Returns:
        The wanted one; else the scenes' own, if all have the same; else longitude and
        latitude on WGS 84.

    Raises:
        ValueError: If the wanted one is not a coordinate system.
    """
    if wanted is not None:
        try:
            return CRS.from_user_input(wanted)
        except CRSError as error:
            raise ValueError(
                f'*crs* {wanted!r} is not a coordinate system: give one such as'
                ' EPSG:4326'
            ) from error
    only = set(systems)
    return CRS.from_user_input(only.pop() if len(only) == 1 else 'OGC:CRS84')


def geometry_columns(
    corners: NDArray[np.float64], systems: Sequence[str], target: CRS
) -> dict[str, pa.Array]:
    """Return the columns `geometry` (WKB) and `bbox` of quadrilaterals.

    Args:
        corners: (N, 4, 2), x and y of the corners, counterclockwise.
        systems: Coordinate system of each.
        target: Coordinate system of the columns. Corners are transformed, edges stay
            straight.
    """
    corners = corners.copy()
    for system in set(systems):
        here = [i for i, each in enumerate(systems) if each == system]
        source = CRS.from_user_input(system)
        if source != target:
            change = Transformer.from_crs(source, target, always_xy=True)
            x, y = change.transform(corners[here, :, 0], corners[here, :, 1])
            corners[here] = np.stack([x, y], -1)
    shapes = shapely.polygons(corners)
    if target.is_geographic:
        shapes = np.array([_split(shape) for shape in shapes], object)
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    sides = [pa.array(side) for side in bounds.T]
    return {
        'geometry': pa.array(shapely.to_wkb(shapes).tolist(), pa.binary()),
        'bbox': pa.StructArray.from_arrays(sides, _SIDES),
    }


def _split(shape: Any) -> Any:
    """Return a polygon in degrees, cut in two where it crosses the date line."""
    west, _, east, _ = shape.bounds
    if east - west <= 180:
        return shape
    shifted = shapely.transform(shape, lambda x: np.where([[1, 0]], x % 360, x))
    parts = [
        shapely.intersection(shifted, shapely.box(0, -90, 180, 90)),
        shapely.transform(
            shapely.intersection(shifted, shapely.box(180, -90, 360, 90)),
            lambda x: x - [360, 0],
        ),
    ]
    return shapely.MultiPolygon([p for p in parts if p.geom_type == 'Polygon'])


def geo_metadata(crs: CRS, boxes: pa.StructArray) -> dict[str, str]:
    """Return the metadata that makes a Parquet file a GeoParquet file.

    Args:
        crs: Coordinate system of the geometries.
        boxes: The column `bbox` of all rows.
    """
    sides = [boxes.field(name).to_numpy() for name in _SIDES]
    # A window that crosses the date line has two polygons.
    types = ['Polygon', 'MultiPolygon'] if crs.is_geographic else ['Polygon']
    column: dict[str, Any] = {
        'encoding': 'WKB',
        'geometry_types': types,
        'crs': crs.to_json_dict(),
        'edges': 'planar',
        'covering': {'bbox': {name: ['bbox', name] for name in _SIDES}},
    }
    if len(boxes):
        ends = (side.min() for side in sides[:2]), (side.max() for side in sides[2:])
        column['bbox'] = [float(end) for pair in ends for end in pair]
    geo = {
        'version': '1.1.0',
        'primary_column': 'geometry',
        'columns': {'geometry': column},
    }
    return {'geo': json.dumps(geo)}
