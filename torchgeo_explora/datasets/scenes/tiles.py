"""Windows side by side that cover whole scenes."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS as RasterCRS
from rasterio.errors import RasterioError
from rasterio.windows import Window
from torch import Tensor

from torchgeo_explora.datasets.pixels.figure import true_colour
from torchgeo_explora.datasets.pixels.image_file import naming
from torchgeo_explora.datasets.pixels.scaling import RANGES, check_range, to_unit
from torchgeo_explora.datasets.scenes.index import select_scenes
from torchgeo_explora.datasets.scenes.listing import list_scenes
from torchgeo_explora.datasets.scenes.raster_dataset import Header, Scenes
from torchgeo_explora.datasets.scenes.scene import Scene
from torchgeo_explora.datasets.tables.dataset import (
    NoSamplesError,
    OnError,
    TableDataset,
    Transform,
    check_side,
)
from torchgeo_explora.datasets.tables.index_file import file_stamp


class _Grid(NamedTuple):
    """The pixels of a scene, north up."""

    crs: str
    transform: Affine
    height: int
    width: int
    bounds: tuple[float, float, float, float]


class Footprints(NamedTuple):
    """Where windows lie.

    `windows` are (N, 4): column, row, width and height in pixels of the scene;
    `corners` (N, 4, 2) are x and y in the scene's own coordinate system,
    counterclockwise from the upper left; `systems` name these systems, and `times` are
    in ISO format, '' where unknown.
    """

    scenes: list[str]
    times: list[str]
    systems: list[str]
    windows: NDArray[np.int64]
    corners: NDArray[np.float64]


class SceneTiles(TableDataset):
    """All pixels of georeferenced scenes, in square windows side by side.

    Scenes are in the order of their names, windows row by row. Every pixel is in
    exactly one window of its scene; where scenes overlap, each of them has its own.
    Windows at the right and the lower edge are cut off there, and their images repeat
    the last pixels. Only headers are read at the start, and scenes stay in their own
    coordinate systems.

    Args:
        paths: As for `list_scenes`.
        size: Side of a window in pixels; if all scenes are smaller, their longest side.
        crs: Coordinate system to warp all scenes to; their own if None.
        bands: Names or numbers of the bands, in the model's order; all if None.
        assets: Keys of the assets of STAC items.
        nodata: Value of pixels without data, if the files do not declare it.
        mask: What replaces a scene's suffix in the name of its cloud mask, which is not
            a scene; clouds are ignored.
        value_range: (low, high) of the values; as for `SceneWindows`.
        on_error: 'raise' stops at a scene or a window that cannot be read, 'skip'
            leaves it out.
        transforms: Applied to each sample.

    Attributes:
        scenes: The scenes.
        systems: The coordinate system of each scene.
        range_known: Whether the range is certain: given, or not of 16-bit values.
        no_data: Value of pixels without data, in all bands.

    Raises:
        NoSamplesError: If no scene can be used; a DatasetNotFoundError.
        FileNotFoundError: If a path does not exist.
        ValueError: If an argument is wrong, or *on_error* is 'raise' and a scene
            cannot be used.
    """

    no_data = 0.0

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = 'data',
        size: int = 224,
        crs: str | None = None,
        bands: Sequence[int | str] | None = None,
        assets: Sequence[str] = (),
        nodata: float | None = None,
        mask: str | None = None,
        value_range: tuple[float, float]
        | tuple[Sequence[float], Sequence[float]]
        | None = None,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
    ) -> None:
        """Read the headers of all scenes."""
        check_side(size)
        self.nodata = nodata
        self._warp_to = None if crs is None else CRS.from_user_input(crs)
        listed, problems = list_scenes(paths, assets, mask)
        chosen = select_scenes(listed, bands, any_type=value_range is not None)
        grids: list[_Grid] = []
        self.scenes: list[Scene] = []
        self._bands: list[list[int]] = []
        with ThreadPoolExecutor() as pool:
            found = pool.map(self._grid, chosen.scenes)
            for scene, numbers, grid in zip(
                chosen.scenes, chosen.numbers, found, strict=True
            ):
                if isinstance(grid, str):
                    problems.append((scene.name, grid))
                else:
                    self.scenes.append(scene)
                    self._bands.append(numbers)
                    grids.append(grid)
        self._complain([*problems, *chosen.problems], on_error)
        self._grids = grids
        self.systems = [grid.crs for grid in grids]
        self.bands, dtype = chosen.bands, chosen.dtype
        self.range_known = value_range is not None or '16' not in dtype
        self.value_range: Any = _range(value_range, self.bands, dtype)
        longest = max(max(grid.height, grid.width) for grid in grids)
        self.size = min(size, longest)
        shapes = np.array([(grid.height, grid.width) for grid in grids])
        self._shapes = -(-shapes // self.size)  # windows down and across
        ends = self._shapes.prod(1).cumsum()
        self._starts = np.concatenate([[0], ends[:-1]])
        self._open = self._by_system()
        super().__init__(int(ends[-1]), 'the scenes', on_error, transforms)

    def _grid(self, scene: Scene) -> _Grid | str:
        """Return the grid of a scene, or why it has none."""
        try:
            handle = Scenes([scene], self._warp_to, self.nodata).handle(scene.path)
        except (ValueError, OSError, RasterioError, CPLE_BaseError, ProjError):
            return 'scenes without georeference'
        with handle:
            return _Grid(
                handle.crs.to_string(),
                handle.transform,
                handle.height,
                handle.width,
                tuple(handle.bounds),
            )

    def _complain(self, problems: list[tuple[str, str]], on_error: OnError) -> None:
        if not problems:
            return
        name, problem = problems[0]
        said = f'{len(problems)} scenes cannot be used, such as {name}: {problem}'
        if not self.scenes:
            raise NoSamplesError(f'no scene is left: {said}')
        if on_error == 'raise':
            raise ValueError(f'{said}; leave them out with *on_error* skip')
        warnings.warn(f'{said}; they are left out', stacklevel=3)

    def _by_system(self) -> dict[str, Scenes]:
        """Return one TorchGeo data set for each coordinate system."""
        groups: dict[str, list[tuple[Scene, _Grid]]] = {}
        for scene, grid in zip(self.scenes, self._grids, strict=True):
            groups.setdefault(grid.crs, []).append((scene, grid))
        found = {}
        for system, group in groups.items():
            crs = RasterCRS.from_user_input(system)
            headers = {
                scene.path: Header(
                    crs, grid.bounds, (grid.transform.a, -grid.transform.e)
                )
                for scene, grid in group
            }
            found[system] = Scenes(
                [scene for scene, _ in group],
                CRS.from_user_input(system),
                self.nodata,
                headers,
            )
        return found

    def windows(self, numbers: Sequence[int]) -> tuple[Any, NDArray[np.int64]]:
        """Return the scenes of windows, (N,), and `Footprints.windows`."""
        index = np.asarray(numbers, np.int64)
        scenes = np.searchsorted(self._starts, index, 'right') - 1
        rows, columns = np.divmod(index - self._starts[scenes], self._shapes[scenes, 1])
        limits = np.array([(grid.width, grid.height) for grid in self._grids])[scenes]
        corner = np.stack([columns, rows], 1) * self.size
        return scenes, np.concatenate(
            [corner, np.minimum(self.size, limits - corner)], 1
        )

    def footprints(self, numbers: Sequence[int]) -> Footprints:
        """Return where windows lie."""
        scenes, windows = self.windows(numbers)
        left, top = windows[:, 0], windows[:, 1]
        right, bottom = left + windows[:, 2], top + windows[:, 3]
        pixels = np.stack(
            [
                np.stack([left, left, right, right], 1),
                np.stack([top, bottom, bottom, top], 1),
            ],
            2,
        )
        corners = np.empty(pixels.shape)
        for row, scene in enumerate(scenes):
            x, y = self._grids[scene].transform @ pixels[row].T.astype(float)
            corners[row] = np.stack([x, y], 1)
        return Footprints(
            [self.scenes[scene].name for scene in scenes],
            [self.scenes[scene].time for scene in scenes],
            [self.systems[scene] for scene in scenes],
            windows,
            corners,
        )

    def identity(self) -> list[Any]:
        """Return values that change when the scenes or the windows do."""
        scenes = [(*scene, file_stamp(scene.path)) for scene in self.scenes]
        return [scenes, self._bands, self.systems, self.size, self.nodata]

    def read(self, index: int) -> dict[str, Any]:
        """Return a window.

        `image` is (C, S, S) in stored values, 0 where there is no data; `path` is that
        of the scene; `no_data` is the share of the window's pixels that have no data in
        any band, 0-d float.
        """
        (scene,), (window,) = self.windows([index])
        left, top, width, height = (int(value) for value in window)
        member, numbers = self.scenes[scene], self._bands[scene]
        place = Window(left, top, width, height)
        with naming(member.name):
            handle = self._open[self.systems[scene]].handle(member.path)
            values = handle.read(numbers, window=place).astype(np.float32)
            known = handle.read_masks(numbers, window=place) > 0
        known &= np.isfinite(values)
        values[~known] = 0
        edges = (0, self.size - height), (0, self.size - width)
        values = np.pad(values, ((0, 0), *edges), mode='edge')
        return {
            'image': torch.from_numpy(values),
            'path': member.name,
            'no_data': torch.tensor(1 - known.any(0).mean(), dtype=torch.float32),
        }

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue if bands are named so, else the first three."""
        return true_colour(to_unit(image, self.value_range), self.bands)


def _range(given: Any, bands: Sequence[str], dtype: str) -> Any:
    if given is not None:
        return check_range(given, bands)
    if dtype not in RANGES:
        raise ValueError(
            f'the scenes hold {dtype} values, which have no usual range: pass'
            f' value_range=(low, high)'
        )
    return RANGES[dtype]
