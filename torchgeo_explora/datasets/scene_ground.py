"""Where windows of scenes lie on the ground, and which scenes show the same place."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import shapely  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.warp import transform_bounds
from shapely import STRtree

type Floats = NDArray[np.float64]
type Bits = NDArray[np.bool_]
type Integers = NDArray[np.int64]


class Ground:
    """The places that scenes cover, each looked up by longitude and latitude.

    Args:
        table: Index of the scenes.
        size: Side of a window in pixels.
        step: Distance between two positions of a window in pixels.
    """

    def __init__(self, table: pa.Table, size: int, step: int) -> None:
        """Note the extent of every scene."""
        self.table, self.size, self.step = table, size, step
        self.systems: list[str] = table['crs'].to_pylist()
        self.origins = _pairs(table, 'origin')
        self.pixels = _pairs(table, 'pixel')
        self.shapes = _pairs(table, 'shape').astype(np.int64)
        boxes = [self._box(scene) for scene in range(table.num_rows)]
        self.tree = STRtree(shapely.box(*np.array(boxes).reshape(-1, 4).T))

    def _box(self, scene: int) -> tuple[float, float, float, float]:
        """Return the extent of a scene's windows: west, south, east, north."""
        (left, top), (width, height) = self.origins[scene], self.pixels[scene]
        rows, columns = (self.shapes[scene] - 1) * self.step + self.size
        return transform_bounds(
            self.systems[scene],
            'EPSG:4326',
            left,
            top - rows * height,
            left + columns * width,
            top,
        )

    def usable(self, scene: int) -> NDArray[np.uint8]:
        """Return the packed bits of a scene's usable positions, unread until needed."""
        column = self.table['usable']
        return np.frombuffer(column[scene].as_buffer(), np.uint8)

    def positions(self, scene: int) -> Integers:
        """Return the usable positions of a scene, each row * columns + column."""
        count = int(np.prod(self.shapes[scene]))
        return np.flatnonzero(np.unpackbits(self.usable(scene), count=count))

    def centres(self, scene: int, rows: Any, columns: Any) -> tuple[Floats, Floats]:
        """Return longitudes and latitudes of the centres of windows of a scene."""
        (left, top), (width, height) = self.origins[scene], self.pixels[scene]
        x = left + (np.asarray(columns) * self.step + self.size / 2) * width
        y = top - (np.asarray(rows) * self.step + self.size / 2) * height
        return _transformer(self.systems[scene]).transform(x, y)

    def position(
        self, scene: int, longitudes: Floats, latitudes: Floats
    ) -> tuple[Integers, Integers, Bits]:
        """Return rows and columns of the windows nearest to places, and if usable."""
        inverse = _transformer(self.systems[scene]).transform
        x, y = inverse(longitudes, latitudes, direction='INVERSE')
        (left, top), (width, height) = self.origins[scene], self.pixels[scene]
        with np.errstate(invalid='ignore'):
            columns = np.rint(((x - left) / width - self.size / 2) / self.step)
            rows = np.rint(((top - y) / height - self.size / 2) / self.step)
        limits = self.shapes[scene]
        inside = (rows >= 0) & (columns >= 0)
        inside &= (rows < limits[0]) & (columns < limits[1])
        rows = np.where(inside, rows, 0).astype(np.int64)
        columns = np.where(inside, columns, 0).astype(np.int64)
        flat = rows * limits[1] + columns
        bits = self.usable(scene)[flat >> 3] >> (7 - (flat & 7)).astype(np.uint8)
        return rows, columns, inside & (bits & 1).astype(bool)

    def scenes_at(
        self, longitudes: Floats, latitudes: Floats
    ) -> tuple[Integers, Integers]:
        """Return all pairs of a place (its number here) and a scene usable there."""
        points = shapely.points(longitudes, latitudes)
        places, scenes = self.tree.query(points, predicate='intersects')
        keep = np.zeros(len(places), bool)
        for scene in np.unique(scenes):
            chosen = np.flatnonzero(scenes == scene)
            here = places[chosen]
            keep[chosen] = self.position(int(scene), longitudes[here], latitudes[here])[
                2
            ]
        return places[keep], scenes[keep]


@lru_cache
def _transformer(system: str) -> Transformer:
    return Transformer.from_crs(system, 'EPSG:4326', always_xy=True)


def _pairs(table: pa.Table, name: str) -> Floats:
    values = table[name].combine_chunks().flatten().to_numpy()
    return values.astype(np.float64).reshape(-1, 2)
