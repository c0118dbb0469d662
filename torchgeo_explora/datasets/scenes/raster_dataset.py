"""Scenes on disk as one TorchGeo data set, read by window."""

import os
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.crs import CRS as RasterCRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from torchgeo.datasets import RasterDataset

from torchgeo_explora.datasets.pixels.image_file import naming
from torchgeo_explora.datasets.pixels.masks import with_true_alpha
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.datasets.scenes.band_stack import item_of
from torchgeo_explora.datasets.scenes.place import georeference
from torchgeo_explora.datasets.scenes.scene import Scene

# Number of files that a process keeps open.
_HANDLES = 64


class Header(NamedTuple):
    """What the index of a TorchGeo data set needs from an open scene."""

    crs: RasterCRS
    bounds: tuple[float, float, float, float]
    res: tuple[float, float]

    def colormap(self, band: int) -> dict[int, Any]:
        """Raise, as an open file without a colour map does."""
        raise ValueError(f'band {band} has no colour map')

    def close(self) -> None:
        """Do nothing."""


class Scenes(RasterDataset):
    """Scenes of one coordinate system, or reprojected to it.

    A TorchGeo raster data set, which can be indexed by place and time, joined and
    sampled like any other. It differs from its base class: scenes may be virtual
    rasters without a file; reprojection is bilinear instead of nearest; pixels that
    reprojection leaves empty count as missing; and every process has its own open
    files, so that forked workers do not disturb each other.

    Args:
        scenes: The scenes.
        crs: Coordinate system to warp to; that of the first scene by default.
        nodata: Value of pixels without data, if the files do not declare it.
        headers: Known headers by path: these scenes are not opened at the start.

    Raises:
        DatasetNotFoundError: If no scene can be opened.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        crs: CRS | None = None,
        nodata: float | None = None,
        headers: Mapping[str, Header] | None = None,
    ) -> None:
        """Open every scene whose header is not known."""
        self.times = {scene.path: scene.time for scene in scenes}
        self.nodata = nodata
        self._handles: dict[str, DatasetReader | WarpedVRT] = {}
        self._process = os.getpid()
        # GDAL complains about files that are still open when the interpreter exits.
        weakref.finalize(self, self._handles.clear)
        self._headers = dict(headers or {})
        super().__init__([scene.path for scene in scenes], crs=crs, cache=False)
        self._headers = {}

    @property
    def files(self) -> list[str]:
        """Paths of all scenes."""
        return list(self.times)

    def _filepath_to_timestamp(self, filepath: Any) -> tuple[datetime, datetime]:
        if not self.times[filepath]:
            return super()._filepath_to_timestamp(filepath)
        time = pd.Timestamp(self.times[filepath])
        time = time.tz_localize(None) if time.tzinfo else time
        return time, time

    def _load_warp_file(
        self, filepath: Any, crs: CRS | None = None
    ) -> DatasetReader | WarpedVRT | Header:
        """Open a scene on a north-up grid in the common coordinate system."""
        if filepath in self._headers:
            return self._headers[filepath]
        source = with_true_alpha(open_raster(filepath))
        known = georeference(source)
        if known is None:
            source.close()
            raise ValueError(
                f'{_shorten(filepath)} has no usable affine transform with a coordinate'
                f' system, and no three ground control points: georeference it'
            )
        system, place = known
        target = RasterCRS.from_user_input(crs or getattr(self, 'crs', system))
        grid, width, height, warped = self._compute_affine_warp_grid(
            system, place, source.width, source.height, target
        )
        nodata = source.nodata if self.nodata is None else self.nodata
        own = (source.crs, source.transform) == (system, place)
        if own and not warped and nodata == source.nodata:
            return source
        options: dict[str, Any] = {}
        if nodata is not None:
            options = {'nodata': nodata}
        elif ColorInterp.alpha not in source.colorinterp:
            options = {'add_alpha': True}
        with source:
            return WarpedVRT(
                source,
                crs=target,
                transform=grid,
                width=width,
                height=height,
                src_crs=system,
                src_transform=place,
                src_nodata=nodata,
                resampling=Resampling.bilinear,
                **options,
            )

    def handle(self, path: str) -> DatasetReader | WarpedVRT:
        """Return an open scene that belongs to this process."""
        if self._process != os.getpid():
            self._handles, self._process = {}, os.getpid()
        if path in self._handles:
            # The most recently used one is closed last.
            self._handles[path] = self._handles.pop(path)
        else:
            if len(self._handles) >= _HANDLES:
                self._handles.pop(next(iter(self._handles))).close()
            self._handles[path] = self._load_warp_file(path, self.crs)
        return self._handles[path]

    def read_window(
        self,
        path: str,
        bands: Sequence[int],
        window: Window,
        size: int,
        marked: bool = False,
    ) -> NDArray[Any]:
        """Read a window of one scene.

        Args:
            path: The scene.
            bands: Numbers of its bands, from 1.
            window: In pixels of the scene's (warped) grid.
            size: Side of the result; the window is resampled bilinearly to it.
            marked: Whether the scene has a mask beside its values; see `Layout`.

        Returns:
            Stored values, (C, size, size); pixels without data are 0.

        Raises:
            UnreadableImageError: If the scene cannot be read.
        """
        # Resampling takes time even if it changes nothing.
        same = window.width == window.height == size
        with naming(_shorten(path)):
            handle = self.handle(path)
            values = handle.read(
                list(bands),
                window=window,
                out_shape=(len(bands), size, size),
                resampling=Resampling.nearest if same else Resampling.bilinear,
            )
            if marked:
                known = handle.read_masks(
                    bands[0], window=window, out_shape=(size, size)
                )
                values[:, known == 0] = 0
        return _without_nodata(values, handle.nodata)

    def read_place(
        self,
        path: str,
        bands: Sequence[int],
        corner: tuple[float, float],
        pixel: tuple[float, float],
        size: int,
    ) -> NDArray[Any]:
        """Read a place of any scene, warped to this data set's coordinate system.

        Args:
            path: The scene, which need not be one of these.
            bands: Numbers of its bands, from 1.
            corner: x and y of the upper left corner.
            pixel: Width and height of a pixel.
            size: Side of the result in pixels.

        Returns:
            Stored values, (C, size, size), bilinear; pixels without data are 0.

        Raises:
            UnreadableImageError: If the scene cannot be read.
        """
        grid = Affine(pixel[0], 0, corner[0], 0, -pixel[1], corner[1])
        with (
            naming(_shorten(path)),
            with_true_alpha(open_raster(path)) as source,
            WarpedVRT(
                source,
                crs=RasterCRS.from_user_input(self.crs),
                transform=grid,
                width=size,
                height=size,
                src_nodata=source.nodata if self.nodata is None else self.nodata,
                resampling=Resampling.bilinear,
            ) as warped,
        ):
            return _without_nodata(warped.read(list(bands)), warped.nodata)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files."""
        return {**self.__dict__, '_handles': {}}


def _without_nodata(values: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """Return values with 0 where there is no data, in place."""
    # If it is 0, as it often is, there is nothing to change.
    if nodata and not np.isnan(nodata):
        values[values == nodata] = 0
    if values.dtype.kind == 'f':
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return values


def _shorten(path: str) -> str:
    """Return a path, or the item of a virtual raster in XML, for an error."""
    if not path.startswith('<'):
        return path
    item = item_of(path)
    return f'item {item}' if item else f'{path[:60]}...'
