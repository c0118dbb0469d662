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

from torchgeo_explora.datasets.scenes.place import on_sphere

type Floats = NDArray[np.float64]
type Bits = NDArray[np.bool_]
type Integers = NDArray[np.int64]


class Ground:
    """The places that scenes cover, looked up by longitude and latitude.

    Scenes, rows and columns are single numbers, or arrays for several places.

    Args:
        table: Index of the scenes.
        size: Side of a window in pixels.
        step: Distance between two positions of a window in pixels.
    """

    def __init__(self, table: pa.Table, size: int, step: int) -> None:
        """Compute the extent of every scene."""
        self.table, self.size, self.step = table, size, step
        self.systems, codes = np.unique(table['crs'].to_numpy(), return_inverse=True)
        self.codes: Integers = codes.astype(np.int64)
        self.origins = _pairs(table, 'origin')
        self.pixels = _pairs(table, 'pixel')
        self.shapes = _pairs(table, 'shape').astype(np.int64)
        boxes = [self._box(scene) for scene in range(table.num_rows)]
        #: Extents of the scenes' windows: west, south, east, north.
        self.boxes: Floats = np.array(boxes).reshape(-1, 4)
        self.tree = STRtree(shapely.box(*self.boxes.T))

    def system(self, scene: int) -> str:
        """Return the coordinate system of a scene."""
        return str(self.systems[self.codes[scene]])

    def _box(self, scene: int) -> tuple[float, float, float, float]:
        (left, top), (width, height) = self.origins[scene], self.pixels[scene]
        rows, columns = (self.shapes[scene] - 1) * self.step + self.size
        bounds = transform_bounds(
            self.system(scene),
            'EPSG:4326',
            left,
            top - rows * height,
            left + columns * width,
            top,
        )
        west, south, east, north = bounds
        if not np.isfinite(bounds).all():
            # A view of the whole Earth, whose corners are not on it.
            return -180, -90, 180, 90
        # Across the date line: a band around the whole Earth, which contains it.
        return bounds if west <= east else (-180, south, 180, north)

    def bits(self, scene: int, name: str = 'usable') -> Bits:
        """Return which positions of a scene are usable (or owned), (h, w)."""
        offsets, data = _packed(self.table, name)
        packed = data[offsets[scene] : offsets[scene + 1]]
        rows, columns = self.shapes[scene]
        bits = np.unpackbits(packed, count=int(rows * columns))
        return bits.reshape(rows, columns).astype(bool)

    def on_map(self, scenes: Any, rows: Any, columns: Any) -> tuple[Floats, Floats]:
        """Return x and y of the centres of windows, in the scenes' own systems."""
        origins, pixels = self.origins[scenes], self.pixels[scenes]
        right = np.asarray(columns) * self.step + self.size / 2
        down = np.asarray(rows) * self.step + self.size / 2
        x = origins[..., 0] + right * pixels[..., 0]
        return x, origins[..., 1] - down * pixels[..., 1]

    def nearest(self, scenes: Any, x: Any, y: Any) -> tuple[Integers, Integers]:
        """Return rows and columns of the windows nearest to places, -1 if outside."""
        origins, pixels, limits = (
            values[scenes] for values in (self.origins, self.pixels, self.shapes)
        )
        found = []
        for distance, pixel, limit in (
            (origins[..., 1] - y, pixels[..., 1], limits[..., 0]),
            (x - origins[..., 0], pixels[..., 0], limits[..., 1]),
        ):
            with np.errstate(invalid='ignore'):
                number = np.rint((distance / pixel - self.size / 2) / self.step)
                inside = (number >= 0) & (number < limit)
            found.append(np.where(inside, number, -1).astype(np.int64))
        return found[0], found[1]

    def centres(self, scenes: Any, rows: Any, columns: Any) -> tuple[Floats, Floats]:
        """Return longitudes and latitudes of the centres of windows."""
        return self._transform(scenes, *self.on_map(scenes, rows, columns), 'FORWARD')

    def position(
        self, scenes: Any, longitudes: Floats, latitudes: Floats
    ) -> tuple[Integers, Integers, Bits]:
        """Return rows and columns of the nearest windows, and whether usable."""
        x, y = self._transform(scenes, longitudes, latitudes, 'INVERSE')
        rows, columns = self.nearest(scenes, x, y)
        inside = (rows >= 0) & (columns >= 0)
        flat = np.where(inside, rows * self.shapes[scenes][..., 1] + columns, 0)
        offsets, data = _packed(self.table, 'usable')
        bits = data[offsets[scenes] + (flat >> 3)] >> (7 - (flat & 7)).astype(np.uint8)
        return rows, columns, inside & (bits & 1).astype(bool)

    def _transform(
        self, scenes: Any, x: Any, y: Any, direction: Any
    ) -> tuple[Floats, Floats]:
        """Transform places from the scenes' coordinate systems, or to them."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        codes = np.broadcast_to(self.codes[scenes], x.shape)
        first, second = np.empty_like(x), np.empty_like(y)
        for code in np.unique(codes):
            here = codes == code
            transform = _transformer(str(self.systems[code])).transform
            found = transform(x[here], y[here], direction=direction)
            first[here], second[here] = found
        return first, second

    def areas(self) -> Floats:
        """Return the area that one position of each scene represents, in radii²."""
        scenes = np.arange(len(self.shapes))
        rows, columns = (self.shapes - 1).T / 2
        east, north = self.centres(scenes, rows, columns)
        # On the sphere, as degrees jump at the date line and end at the poles.
        place = on_sphere(east, north)
        right = on_sphere(*self.centres(scenes, rows, columns + 1)) - place
        down = on_sphere(*self.centres(scenes, rows + 1, columns)) - place
        areas: Floats = np.linalg.norm(np.cross(right, down), axis=-1)
        return areas

    def scenes_at(
        self, longitudes: Floats, latitudes: Floats
    ) -> tuple[Integers, Integers]:
        """Return all pairs of a place (its index) and a scene usable there."""
        points = shapely.points(longitudes, latitudes)
        places, scenes = self.tree.query(points, predicate='intersects')
        usable = self.position(scenes, longitudes[places], latitudes[places])[2]
        return places[usable], scenes[usable]


@lru_cache
def _transformer(system: str) -> Transformer:
    return Transformer.from_crs(system, 'EPSG:4326', always_xy=True)


def _pairs(table: pa.Table, name: str) -> Floats:
    values = table[name].combine_chunks().flatten().to_numpy()
    return values.astype(np.float64).reshape(-1, 2)


def _packed(table: pa.Table, name: str) -> tuple[Integers, NDArray[np.uint8]]:
    """Return where the bits of each scene start, and all bits, without a copy."""
    column = table[name]
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset :][: len(array) + 1]
    return starts, np.frombuffer(data, np.uint8)
