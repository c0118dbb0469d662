"""Which scene represents which ground, so that no place counts twice."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rasterio.warp import transform_bounds
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_explora.datasets.scenes.ground import Ground

type _Bits = NDArray[np.bool_]

# Columns added to an index: packed bits, and how many are set.
_COLUMNS = {'owned': pa.large_binary(), 'places': pa.int64()}


def add_owners(table: pa.Table, size: int, step: int) -> pa.Table:
    """Mark for each scene the usable positions that no earlier scene shows.

    Together these positions cover every place once, so a draw from them meets each
    place as often as any other, however many scenes show it. Finding them means
    examining every position of every scene, so it is done once, for the index.

    Args:
        table: Index of the scenes.
        size: Side of a window in pixels.
        step: Distance between two positions of a window in pixels.

    Returns:
        The table with `_COLUMNS`.
    """
    ground = Ground(table, size, step)
    owned: list[bytes] = []
    places = np.zeros(table.num_rows, np.int64)
    for scene in tqdm(range(table.num_rows), 'ground', unit=' scenes', disable=None):
        mine = ground.bits(scene)
        near = ground.tree.query(ground.tree.geometries[scene])
        # A scene that owns nothing shows only what other scenes show.
        for other in np.sort(near[(near < scene) & (places[near] > 0)]):
            _leave(mine, ground, scene, int(other))
            if not mine.any():
                break
        places[scene] = mine.sum()
        owned.append(np.packbits(mine).tobytes())
    for name, values in (('owned', owned), ('places', places)):
        table = table.append_column(name, pa.array(values, _COLUMNS[name]))
    return table


def _leave(mine: _Bits, ground: Ground, scene: int, other: int) -> None:
    """Clear the positions of a scene where another one can be used."""
    if ground.codes[scene] == ground.codes[other]:
        # In one coordinate system, rows of one scene are rows of the other.
        x, _ = ground.on_map(scene, 0, np.arange(mine.shape[1]))
        _, y = ground.on_map(scene, np.arange(mine.shape[0]), 0)
        rows, _ = ground.nearest(other, 0, y)
        _, columns = ground.nearest(other, x, 0)
        here = np.ix_(np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0))
        there = np.ix_(rows[rows >= 0], columns[columns >= 0])
        mine[here] &= ~ground.bits(other)[there]
        return
    # Transforming places is slow, so only those that may be shared are examined.
    system = ground.system(scene)
    bounds = transform_bounds('EPSG:4326', system, *ground.boxes[other])
    # If the box has no bounds in this coordinate system, all places are examined.
    whole = np.array([-np.inf, -np.inf, np.inf, np.inf])
    left, bottom, right, top = np.where(np.isfinite(bounds), bounds, whole)
    x, y = ground.on_map(scene, np.array([0, 1]), np.array([0, 1]))
    first = np.floor([(y[0] - top) / (y[0] - y[1]), (left - x[0]) / (x[1] - x[0])])
    last = np.ceil([(y[0] - bottom) / (y[0] - y[1]), (right - x[0]) / (x[1] - x[0])])
    first, last = (np.clip(n, 0, mine.shape).astype(int) for n in (first, last + 1))
    rows, columns = np.nonzero(mine[first[0] : last[0], first[1] : last[1]])
    rows, columns = rows + first[0], columns + first[1]
    shown = ground.position(other, *ground.centres(scene, rows, columns))[2]
    mine[rows[shown], columns[shown]] = False
