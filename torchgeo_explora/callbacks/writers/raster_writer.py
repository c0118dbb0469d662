"""A raster of classes or embeddings, written block by block."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.windows import Window
from torch import Tensor

from torchgeo_explora.callbacks.writers.cog import block_side, write_cog
from torchgeo_explora.callbacks.writers.parquet import model_fingerprint
from torchgeo_explora.callbacks.writers.part_writer import PartWriter
from torchgeo_explora.callbacks.writers.principal import Basis, principal_components
from torchgeo_explora.datasets.pixels.raster_blocks import CACHE
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.version import __version__
from torchgeo_explora.writing import replacing

#: Value of 8-bit classes where there is no data.
_NO_CLASS = 255


class RasterWriter(PartWriter):
    """Write a task's map of a `RasterSceneDataModule` as a cloud-optimised GeoTIFF.

    Coordinate system and transform, or ground control points, are those of the scene.
    Classes have 8 bits, 255 where there is no data; embeddings are float32 with one
    band per value, NaN where there is no data. Tags name the model and its fingerprint.

    A part is a block of the scene; see `PartWriter` for runs that are interrupted or
    shared. `Trainer.predict` returns nothing.

    Args:
        path: The file; `scene.tif` in the trainer's root folder if None.
        components: k, number of principal components that embeddings are reduced to;
            all values if None. They are computed from all cells of this scene.
        tags: Further tags of the file.
    """

    file = 'scene.tif'
    suffix = '.npy'

    def __init__(
        self,
        path: str | Path | None = None,
        components: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write while predicting.

        Raises:
            ValueError: If the number of components is below 1.
        """
        if components is not None and components < 1:
            raise ValueError(f'*components* is {components}: give 1 or more, or None')
        super().__init__(path)
        self.components, self.tags = components, dict(tags or {})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data module skip finished blocks.

        Raises:
            ValueError: If *components* does not fit what is mapped.
        """
        super().setup(trainer, pl_module, stage)
        if stage == 'predict':
            self._require_components(pl_module)
        # Lightning would keep every block until the end, which may not fit in memory.
        trainer.predict_loop.return_predictions = False

    def _require_components(self, task: Any) -> None:
        if self.components is None:
            return
        if task.labels_cells:
            raise ValueError(
                '*components* is for embeddings, but this task maps classes: leave it'
                ' out'
            )
        width = task.backbone.embed_dim
        if self.components > width:
            raise ValueError(
                f'*components* is {self.components}, but the embeddings have {width}'
                f' values: give at most {width}'
            )

    def state(self, trainer: Trainer, pl_module: Any) -> list[Any]:
        """Return what the blocks depend on besides the model."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        return [
            pl_module.cell,
            *(datamodule.size, datamodule.stride, datamodule.block),
            *(str(datamodule.value_range), datamodule.bands),
            datamodule.predict_dataset.channels,
            datamodule.predict_dataset.nodata,
            *_file_state(datamodule.path),
        ]

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a block to its file."""
        with replacing(self.part(int(batch['block']))) as part, part.open('wb') as file:
            np.save(file, prediction.cpu().numpy())

    def join(self, trainer: Trainer, pl_module: Any, parts: list[Path]) -> None:
        """Write the map from its blocks."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        first = np.load(parts[0], mmap_mode='r')
        tags = {
            'EXPLORA_VERSION': __version__,
            'EXPLORA_MODEL': str(pl_module.backbone.arguments.get('model', '')),
            'EXPLORA_FINGERPRINT': str(model_fingerprint(pl_module.backbone)),
            **self.tags,
        }
        basis = None
        if self.components is not None:
            basis = principal_components(map(np.load, parts), self.components)
            share = ' '.join(f'{value:.4f}' for value in basis.shares)
            tags['EXPLORA_SHARE_OF_VARIANCE'] = share
        assert self._folder is not None
        whole = self._folder / 'whole.tif'
        profile = self._profile(datamodule, pl_module.cell, first, basis)
        with rasterio.Env(GDAL_CACHEMAX=CACHE), warnings.catch_warnings():
            # `_profile` has warned of a scene without a place on Earth.
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with (
                replacing(whole) as part,
                rasterio.open(part, 'w', **profile) as file,
            ):
                file.update_tags(**tags)
                dataset = datamodule.predict_dataset
                for number in range(dataset.blocks):
                    corner = dataset.corner(number)
                    top, left = (side // pl_module.cell for side in corner)
                    values = np.load(self.part(number))
                    if basis is not None:
                        values = basis.project(values)
                    height, width = values.shape[1:]
                    file.write(values, window=Window(left, top, width, height))
            with replacing(self.target) as part:
                write_cog(whole, part)
        rank_zero_info(f'scene: {self.target}')

    def _profile(
        self, datamodule: Any, cell: int, first: Any, basis: Basis | None
    ) -> dict[str, Any]:
        """Return rasterio's profile of the map."""
        with open_raster(datamodule.path) as scene:
            crs, transform = scene.crs, scene.transform
            points, system = scene.gcps
        place: dict[str, Any] = {
            'crs': crs,
            'transform': transform @ Affine.scale(cell),
        }
        if crs is None and points:
            place = {'crs': system, 'gcps': [_in_cells(p, cell) for p in points]}
        elif crs is None:
            rank_zero_warn(
                f'{datamodule.path} has no coordinate system, so {self.target} will'
                ' have none'
            )
        dataset = datamodule.predict_dataset
        count = len(first) if basis is None else len(basis.shares)
        side = block_side(count, first.dtype)
        return {
            'driver': 'GTiff',
            'count': count,
            'height': -(-dataset.height // cell),
            'width': -(-dataset.width // cell),
            'dtype': first.dtype,
            **place,
            'nodata': _NO_CLASS if first.dtype == np.uint8 else np.nan,
            'tiled': True,
            'blockxsize': side,
            'blockysize': side,
            'interleave': 'band',
            'BIGTIFF': 'IF_SAFER',
        }


def _in_cells(point: GroundControlPoint, cell: int) -> GroundControlPoint:
    """Return a point of a raster on one whose pixels are *cell* times as wide."""
    return GroundControlPoint(
        point.row / cell, point.col / cell, point.x, point.y, point.z or 0.0
    )


def _file_state(path: str) -> list[Any]:
    """Return values that change when a local file does."""
    if not os.path.exists(path):
        return [path]
    state = os.stat(path)
    return [os.path.abspath(path), state.st_size, state.st_mtime_ns]
