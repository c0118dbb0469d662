"""Windows of scenes that are larger than memory, without labels."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pyproj import CRS
from rasterio.crs import CRS as RasterCRS
from rasterio.windows import Window
from torch import Tensor

from torchgeo_explora.datasets.pixels.figure import true_colour
from torchgeo_explora.datasets.pixels.scaling import (
    RANGES,
    check_range,
    to_unit,
    unused_range,
)
from torchgeo_explora.datasets.scenes.draw import draw_windows, fair_length
from torchgeo_explora.datasets.scenes.ground import Ground
from torchgeo_explora.datasets.scenes.index import (
    EMPTY,
    FAULTS,
    Cutting,
    open_scene_index,
)
from torchgeo_explora.datasets.scenes.listing import list_scenes
from torchgeo_explora.datasets.scenes.raster_dataset import Header, Scenes
from torchgeo_explora.datasets.scenes.scene import Scene
from torchgeo_explora.datasets.tables.dataset import (
    NoSamplesError,
    OnError,
    TableDataset,
    Transform,
)
from torchgeo_explora.datasets.tables.index_file import parse_time
from torchgeo_explora.datasets.tables.metadata import place_metadata, time_metadata


class SceneWindows(TableDataset):
    """Square windows of georeferenced scenes, as unlabelled images or series.

    The windows are drawn once, from the seed, so that a run can be resumed. Every place
    on the ground is equally likely, however many scenes show it, and so is each of
    these scenes. Windows with too much missing data or cloud are never drawn. The first
    start examines all scenes and writes an index, which later ones open. Only the
    pixels of a window are read.

    Each scene stays in its own coordinate system unless *crs* is given. Then scenes in
    other systems are reprojected through TorchGeo's `RasterDataset`.

    Args:
        paths: Folders (with their sub-folders), patterns, rasters, VRTs or `.json`
            files of STAC items; one of them or several. With *assets*, a folder with
            `.json` files is one of STAC items.
        size: Side of the windows in pixels.
        length: N, number of windows; if None, enough to cover each scene about once.
            A larger number costs nothing: pass the number of images that a run uses.
        bands: Bands to return and their order: names as in the band descriptions, or
            numbers from 1; all by default. Scenes with band names are matched by name.
            The attribute *bands* has the names.
        assets: Keys of a STAC item's assets, in the order of the bands. Items that give
            scale and offset (`raster:bands`) are converted to the most common scale,
            without an offset.
        crs: Coordinate system to warp all scenes to, such as 'EPSG:3857'.
        res: Size of a pixel in units of the coordinate system; the scene's by default.
        nodata: Value of pixels without data, if the files do not declare it.
        mask: What replaces a scene's suffix in the name of its cloud mask, such as
            `_cloud.tif`; for STAC, the key of an asset, such as 'SCL'.
        cloud_values: Values of the mask that hide the ground, such as 3, 8, 9 and 10
            of Sentinel-2's SCL; all except 0 by default.
        max_invalid: Largest share of a window without data or under clouds.
        times: T; with 2 or more, a sample is a series of up to T scenes of one place,
            sorted by time and resampled to the grid of the first one drawn. If a place
            has too few, the last one drawn is repeated.
        seed: Seed of the windows and the series.
        value_range: (low, high) of the values, each one number, or one per band. The
            default follows the type: uint8 (0, 255), 16 bits (0, 10000), float (0, 1).
        index_dir: Folder of the index file; that of the first path by default.
        max_missing: Largest share of scenes that may be unusable, in [0, 1].
        on_error: 'raise' stops at an unreadable window, 'skip' uses the next one, and
            leaves out any number of unusable scenes.
        transforms: Applied to each sample.

    Attributes:
        windows: (N, 3), scene, row and column in steps of the index.
        range_known: Whether the range is certain: given, or not of 16-bit values.
        no_data: Value of pixels without data, in all bands.

    Raises:
        NoSamplesError: If no scene has a usable window; a DatasetNotFoundError.
        FileNotFoundError: If a path does not exist, or too many scenes are unusable.
        ValueError: If an argument is wrong.
    """

    no_data = 0.0

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = 'data',
        size: int = 224,
        length: int | None = None,
        bands: Sequence[int | str] | None = None,
        assets: Sequence[str] = (),
        crs: str | None = None,
        res: float | None = None,
        nodata: float | None = None,
        mask: str | None = None,
        cloud_values: Sequence[int] | None = None,
        max_invalid: float = 0.1,
        times: int = 1,
        seed: int = 0,
        value_range: tuple[float, float]
        | tuple[Sequence[float], Sequence[float]]
        | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
    ) -> None:
        """Open the index, or build it, and draw the windows."""
        if not 0 <= max_invalid < 1:
            raise ValueError(f'*max_invalid* must be in [0, 1), not {max_invalid}')
        for name, value in (('size', size), ('times', times), ('length', length)):
            if value is not None and value < 1:
                raise ValueError(f'*{name}* must be 1 or more, not {value}')
        self.size, self.times, self.seed = size, times, seed
        self.cutting = Cutting(
            size=size,
            crs=crs,
            res=res,
            bands=None if bands is None else tuple(bands),
            nodata=nodata,
            cloud_values=None if cloud_values is None else tuple(cloud_values),
            max_invalid=max_invalid,
            step=next(step for step in (8, 4, 2, 1) if size % step == 0),
        )
        listed, problems = list_scenes(paths, assets, mask)
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        folder = _folder(given[0]) if index_dir is None else os.fspath(index_dir)
        self.index = open_scene_index(
            listed,
            problems,
            self.cutting,
            os.path.join(folder, f'.scenes_{_digest(given, self.cutting)}.arrow'),
            any_type=value_range is not None,
        )
        allowed = 1.0 if on_error == 'skip' else max_missing
        self._check_index(allowed, f'{len(given)} paths ({os.fspath(given[0])} ...)')
        self.bands: tuple[str, ...] = tuple(self.index.note('bands'))
        self.range_known = value_range is not None
        self.value_range = self._range(value_range)
        extremes = self.index.note('extremes')
        if extremes and not (value_range is None and self.range_known):
            lowest, highest = torch.tensor(extremes)
            if text := unused_range(lowest, highest, self.value_range):
                warnings.warn(f'the scenes {text}', stacklevel=2)
        self.ground = Ground(self.index.table, size, self.cutting.step)
        self.scenes = self._open_scenes()
        length = fair_length(self.ground) if length is None else length
        self.windows = draw_windows(self.ground, length, seed)
        super().__init__(length, 'the scenes', on_error, transforms)

    def _check_index(self, max_missing: float, what: str) -> None:
        counts, examples = self.index.note('counts'), self.index.note('examples')
        report = self.index.note('report')
        with self.index.kept_if_accepted():
            if not self.index.table.num_rows:
                raise NoSamplesError(
                    f'no window of {self.size} pixels can be cut out of {what}:'
                    f' {counts}, such as {next(iter(examples.values()))}; see {report}'
                )
        others = [name for name in counts if name not in (*FAULTS, EMPTY)]
        self.index.check_missing(max_missing, what, [*FAULTS, *others])
        if EMPTY in counts:
            warnings.warn(
                f'{counts[EMPTY]} {EMPTY}, such as {examples[EMPTY]}, are left out: no'
                f' data, clouds, or smaller than {self.size} pixels. See {report}',
                stacklevel=3,
            )
        if self.times > 1 and '' in self.index.table['time'].to_pylist():
            row = self.index.table['time'].to_pylist().index('')
            raise ValueError(
                f'*times* is {self.times} but scene'
                f' {self.index.table["name"][row].as_py()} has no date in its name: a'
                f' series needs one, such as 20200131'
            )

    def _range(self, given: Any) -> Any:
        if given is not None:
            return check_range(given, self.bands)
        kind = self.index.note('dtype')
        if kind not in RANGES:
            raise ValueError(
                f'the scenes hold {kind} values, which have no usual range: pass'
                f' value_range=(low, high)'
            )
        self.range_known = '16' not in kind
        return RANGES[kind]

    def _open_scenes(self) -> dict[str, Scenes]:
        """Return one TorchGeo data set for each coordinate system."""
        columns = ['name', 'path', 'time', 'crs', 'bounds', 'pixel', 'scale']
        groups: dict[str, list[Scene]] = {}
        headers: dict[str, Header] = {}
        systems: dict[str, RasterCRS] = {}
        for row in self.index.table.select(columns).to_pylist():
            system, path = row['crs'], row['path']
            scene = Scene(row['name'], path, row['time'])
            groups.setdefault(system, []).append(scene)
            if system not in systems:
                systems[system] = RasterCRS.from_user_input(system)
            width, height = (side / row['scale'] for side in row['pixel'])
            headers[path] = Header(systems[system], row['bounds'], (width, height))
        return {
            system: Scenes(
                group, CRS.from_user_input(system), self.cutting.nodata, headers
            )
            for system, group in groups.items()
        }

    def read(self, index: int) -> dict[str, Any]:
        """Return a window.

        `image` is (C, H, W), or (T, C, H, W) for series, in stored values, 0 where
        there is no data; `path` is that of the scene, as are `year`, `month` and
        `hour`; `longitude` and `latitude` are of the window's centre; series have
        `timestamps` (T, 3): year - 2002, month - 1, hour.
        """
        scene, row, column = (int(value) for value in self.windows[index])
        image = self._read_window(scene, row, column)
        east, north = self.ground.centres(scene, [row], [column])
        sample: dict[str, Any] = {
            'image': image,
            'path': self._field('name', scene),
            **time_metadata(self._field('time', scene)),
            **place_metadata(float(east[0]), float(north[0])),
        }
        if self.times > 1:
            members = self._members(index)
            images = {
                other: image if other == scene else self._read_other(index, other)
                for other in set(members)
            }
            codes = [parse_time(self._field('time', other)) for other in members]
            sample['image'] = torch.stack([images[other] for other in members])
            sample['timestamps'] = torch.tensor(codes, dtype=torch.float32)
        return sample

    def _field(self, name: str, scene: int) -> Any:
        return self.index.table[name][scene].as_py()

    def _read_window(self, scene: int, row: int, column: int) -> Tensor:
        scale = self._field('scale', scene)
        step = self.cutting.step * scale
        pixels = self.scenes[self._field('crs', scene)].read_window(
            self._field('path', scene),
            self._field('bands', scene),
            Window(column * step, row * step, self.size * scale, self.size * scale),
            self.size,
            self._field('marked', scene),
        )
        return torch.from_numpy(pixels.astype(np.float32))

    def _members(self, index: int) -> list[int]:
        """Return the scenes of a series, sorted by time."""
        scene, row, column = (int(value) for value in self.windows[index])
        place = self.ground.centres(scene, [row], [column])
        _, found = self.ground.scenes_at(*place)
        others = sorted({int(other) for other in found} - {scene})
        generator = np.random.default_rng((self.seed, index))
        drawn = generator.permutation(others)[: self.times - 1].tolist()
        members = [scene, *(int(other) for other in drawn)]
        members += members[-1:] * (self.times - len(members))
        return sorted(members, key=lambda other: self._field('time', other))

    def _read_other(self, index: int, other: int) -> Tensor:
        """Read the place of a window in another scene, on the window's grid."""
        scene, row, column = (int(value) for value in self.windows[index])
        (left, top), (width, height) = (
            self._field('origin', scene),
            self._field('pixel', scene),
        )
        step = self.cutting.step
        corner = (left + column * step * width, top - row * step * height)
        pixels = self.scenes[self._field('crs', scene)].read_place(
            self._field('path', other),
            self._field('bands', other),
            corner,
            (width, height),
            self.size,
        )
        return torch.from_numpy(pixels.astype(np.float32))

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue if bands are named so, else the first three."""
        return true_colour(to_unit(image, self.value_range), self.bands)


def _folder(path: str | os.PathLike[str]) -> str:
    """Return the folder of a path, a pattern or a file."""
    name = os.fspath(path)
    while name and not os.path.isdir(name):
        name = os.path.dirname(name)
    return name or '.'


def _digest(paths: Sequence[Any], cutting: Cutting) -> str:
    text = repr(([os.path.abspath(path) for path in paths], cutting))
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
