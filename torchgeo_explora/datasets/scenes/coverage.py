"""Where a scene has data and no clouds, and where a window fits."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from torchgeo_explora.datasets.pixels.raster_file import open_raster

type _Bits = NDArray[np.bool_]
type _Shares = NDArray[np.floating[Any]]

# Rows of cells that are read at a time: a strip of a large scene takes some MB.
_ROWS = 64


def visible_shares(
    handle: DatasetReader | WarpedVRT,
    band: int,
    step: int,
    scale: float = 1.0,
    mask: str | None = None,
    cloud_values: Sequence[int] | None = None,
) -> _Shares:
    """Return the share of each cell of a scene that has data and no clouds.

    Every pixel counts, or every pixel of a suitable overview if the file has one.

    Args:
        handle: The open scene.
        band: Number of the band whose missing data count, from 1.
        step: Side of a cell in pixels of a window.
        scale: Side of a window's pixel in pixels of the scene.
        mask: Raster of any resolution and coordinate system whose first band marks what
            cannot be seen.
        cloud_values: Its values that hide the ground; all except 0 if None.

    Returns:
        (h, w) in [0, 1], for all whole cells.

    Raises:
        RasterioIOError: If the scene or the mask cannot be read.
    """
    cell = step * scale
    # Rounding errors of a ratio of sizes must not cost a cell.
    height, width = (
        math.floor(side / cell + 1e-6) for side in (handle.height, handle.width)
    )
    factors = [f for f in handle.overviews(band) if step % f == 0]
    side = step // max(factors, default=1)
    shares = np.zeros((height, width), np.float32)
    if not shares.size:
        return shares
    # Fetched once: each access asks GDAL about every band.
    floats = handle.dtypes[band - 1].startswith('float')
    with ExitStack() as stack:
        clouds = None if mask is None else stack.enter_context(_aligned(mask, handle))
        for top in range(0, height, _ROWS):
            rows = min(_ROWS, height - top)
            options: dict[str, Any] = {
                'window': Window(0, top * cell, width * cell, rows * cell),
                'out_shape': (rows * side, width * side),
                'resampling': Resampling.nearest,
            }
            visible = handle.read_masks(band, **options) > 0
            if floats:
                visible &= np.isfinite(handle.read(band, **options))
            if clouds is not None:
                values = clouds.read(1, **options)
                visible &= (
                    values == 0
                    if cloud_values is None
                    else ~np.isin(values, list(cloud_values))
                )
            # (rows * side, w * side) -> (rows, w)
            cells = visible.reshape(rows, side, width, side).mean((1, 3))
            shares[top : top + rows] = cells
    return shares


def _aligned(path: str, handle: DatasetReader | WarpedVRT) -> WarpedVRT:
    """Open a raster on the grid of another one."""
    with open_raster(path) as source:
        return WarpedVRT(
            source,
            crs=handle.crs,
            transform=handle.transform,
            width=handle.width,
            height=handle.height,
            resampling=Resampling.nearest,
        )


def positions(visible: _Shares, cells: int, max_invalid: float) -> _Bits:
    """Return where the upper left cell of a usable window can be.

    Args:
        visible: Share of each cell that can be used, (h, w) in [0, 1].
        cells: Side of a window in cells.
        max_invalid: Largest share of a window that cannot be used.

    Returns:
        (h - cells + 1, w - cells + 1), (0, 0) if the scene is too small.
    """
    height, width = visible.shape
    if min(height, width) < cells:
        return np.zeros((0, 0), bool)
    # Sums over all upper left rectangles: a window's sum is four of them.
    sums = np.zeros((height + 1, width + 1))
    np.cumsum(np.cumsum(visible, 0, float), 1, out=sums[1:, 1:])
    inside = (
        sums[cells:, cells:]
        - sums[:-cells, cells:]
        - sums[cells:, :-cells]
        + sums[:-cells, :-cells]
    )
    # The tolerance is below the share of a pixel and above the rounding errors.
    return inside / cells**2 >= 1 - max_invalid - 1e-7
