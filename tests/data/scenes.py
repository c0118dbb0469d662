"""Write overlapping GeoTIFF scenes in two coordinate systems.

`python tests/data/scenes.py FOLDER`
"""

import json
import sys
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.transform import from_origin
from rasterio.warp import transform

HOME = 'EPSG:32632'
#: Upper left corner of the ground in HOME, in metres; pixels are 10 m.
WEST, NORTH = 500_000, 5_000_000
BANDS = ('B04', 'B03', 'B02')


def ground(x: np.ndarray, y: np.ndarray, scene: int) -> np.ndarray:
    """Return the values at places in HOME: east, north (in pixels), and the scene."""
    east, north = (x - WEST) / 10, (NORTH - y) / 10
    return np.stack([1000 + east, 1000 + north, np.full_like(x, 100.0 * (scene + 1))])


def coarser(grid: Affine, factor: int) -> Affine:
    """Return a grid with larger pixels and the same corner."""
    return Affine(grid.a * factor, 0, grid.c, 0, grid.e * factor, grid.f)


def write_scene(
    path: Path,
    corner: tuple[float, float] = (0, 0),
    size: tuple[int, int] = (160, 160),
    scene: int = 0,
    crs: str = HOME,
    hole: tuple[int, int, int, int] | None = None,
    bands: tuple[str, ...] = BANDS,
    dtype: str = 'uint16',
    nodata: float | None = 0,
) -> Path:
    """Write a scene whose values tell where on the ground they are.

    Args:
        path: The file.
        corner: Pixels from WEST and NORTH to the upper left corner.
        size: (H, W) in pixels.
        scene: Number in the third band.
        crs: Coordinate system.
        hole: Rows and columns without data: first and last row, first and last column.
        bands: Names of the bands.
        dtype: Data type.
        nodata: Value without data.
    """
    left, top = WEST + 10 * corner[0], NORTH - 10 * corner[1]
    if crs != HOME:
        # The same corner, in the other system.
        (left,), (top,) = transform(HOME, crs, [left], [top])
        left, top = round(left, -1), round(top, -1)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    x, y = left + 10 * (columns + 0.5), top - 10 * (rows + 0.5)
    if crs != HOME:
        east, north = transform(crs, HOME, x.ravel(), y.ravel())
        x, y = np.reshape(east, size), np.reshape(north, size)
    pixels = np.round(ground(x, y, scene))[: len(bands)]
    pixels = np.concatenate([pixels] * (1 + len(bands) // 3))[: len(bands)]
    if hole is not None:
        pixels[:, hole[0] : hole[1], hole[2] : hole[3]] = nodata or 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        'w',
        count=len(bands),
        height=size[0],
        width=size[1],
        dtype=dtype,
        crs=crs,
        nodata=nodata,
        transform=from_origin(left, top, 10, 10),
        tiled=True,
        blockxsize=64,
        blockysize=64,
    ) as file:
        file.write(pixels.astype(dtype))
        file.descriptions = bands
    return path


def write_mask(scene: Path, clouds: tuple[int, int, int, int], value: int = 1) -> Path:
    """Write a cloud mask of half the resolution beside a scene, in its pixels."""
    with rasterio.open(scene) as file:
        place, crs, shape = file.transform, file.crs, file.shape
    pixels = np.zeros((shape[0] // 2, shape[1] // 2), np.uint8)
    rows, columns = slice(*clouds[:2]), slice(*clouds[2:])
    pixels[slice(rows.start // 2, rows.stop // 2), :][
        :, slice(columns.start // 2, columns.stop // 2)
    ] = value
    path = scene.with_name(f'{scene.stem}_cloud.tif')
    with rasterio.open(
        path,
        'w',
        count=1,
        height=pixels.shape[0],
        width=pixels.shape[1],
        dtype='uint8',
        crs=crs,
        transform=coarser(place, 2),
    ) as file:
        file.write(pixels, 1)
    return path


def write_scenes(root: Path) -> Path:
    """Write four scenes: three of one place, one of them in another zone, one apart."""
    write_scene(root / 'a_20200110.tif', (0, 0), scene=0)
    write_scene(root / 'b_20200320T101112.tif', (40, 0), scene=1)
    write_scene(root / 'zone33/c_20190505.tif', (20, 20), scene=2, crs='EPSG:32633')
    write_scene(root / 'd_20210601.tif', (2000, 0), scene=3)
    return root


def write_sentinel2_scenes(root: Path) -> Path:
    """Write two scenes with the ten bands of Sentinel-2 at 10 and 20 m."""
    names = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
    for scene in range(2):
        write_scene(root / f'{scene}.tif', (200 * scene, 0), scene=scene, bands=names)
    return root


def write_stac(root: Path) -> Path:
    """Write two STAC items whose bands are files of their own, one of them coarser."""
    items = []
    for scene, day in enumerate(('2020-01-10', '2020-03-20')):
        name = f'item{scene}'
        whole = write_scene(root / name / 'whole.tif', (40 * scene, 0), scene=scene)
        assets = {}
        with rasterio.open(whole) as file:
            for number, band in enumerate(BANDS, 1):
                factor = 2 if band == 'B02' else 1
                profile = file.profile | {
                    'count': 1,
                    'width': file.width // factor,
                    'height': file.height // factor,
                    'transform': coarser(file.transform, factor),
                }
                path = root / name / f'{band}.tif'
                with rasterio.open(path, 'w', **profile) as part:
                    part.write(file.read(number)[::factor, ::factor], 1)
                assets[band] = {'href': f'{name}/{band}.tif'}
        whole.unlink()
        items.append(
            {
                'type': 'Feature',
                'id': name,
                'properties': {'datetime': f'{day}T10:20:30Z'},
                'assets': assets,
            }
        )
    path = root / 'items.json'
    path.write_text(json.dumps({'type': 'FeatureCollection', 'features': items}))
    return path


def write_container(path):
    """Write a file with two rasters, `tableNO` and `tableYES`, and none of its own."""
    for more in ('NO', 'YES'):
        with rasterio.open(
            path,
            'w',
            driver='GPKG',
            count=1,
            height=64,
            width=64,
            dtype='uint8',
            crs='EPSG:4326',
            transform=from_origin(5, 5, 0.1, 0.1),
            raster_table=f'table{more}',
            append_subdataset=more,
        ) as file:
            file.write(np.ones((1, 64, 64), 'uint8'))


if __name__ == '__main__':
    write_scenes(Path(sys.argv[1]))
