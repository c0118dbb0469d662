"""A raster of classes or embeddings, written block by block."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine
from rasterio.windows import Window
from torch import Tensor

from torchgeo_explora.adapt import base_fingerprint, delta_state_dict, fingerprint
from torchgeo_explora.datasets.pixels.raster_blocks import CACHE
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.paths import expanded, require_writable
from torchgeo_explora.writing import replacing

#: Value of 8-bit classes where there is no data.
_NO_CLASS = 255


class RasterWriter(BasePredictionWriter):
    """Write a task's map of a `RasterSceneDataModule` as a GeoTIFF.

    Coordinate system and transform, or ground control points, are those of the scene.
    Classes have 8 bits, 255 where there is no data; embeddings are float32 with one
    band per value, NaN where there is no data.

    Every block is first written to its own file, in a folder beside the result; at the
    end the blocks are joined in a fixed order. So a run that was killed continues where
    it stopped and gives the same file, and several processes can share the work. Blocks
    of another model, scene or setting are deleted. `Trainer.predict` returns nothing.

    Args:
        path: The file; `scene.tif` in the trainer's root folder if None.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """Write while predicting."""
        super().__init__(write_interval='batch')
        self.path = Path(expanded(path)) if path is not None else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data module skip finished blocks."""
        self._target = self.path or Path(trainer.default_root_dir) / 'scene.tif'
        if trainer.is_global_zero:
            require_writable(self._target.parent)
        self._parts = self._target.with_name(f'.{self._target.name}.parts')
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        # Called when the loader is made: the model has its checkpoint by then.
        datamodule.finished = lambda: self._finished(trainer, pl_module)
        # Lightning would keep every block until the end, and a scene may not fit.
        trainer.predict_loop.return_predictions = False

    def _finished(self, trainer: Trainer, pl_module: Any) -> set[int]:
        """Return the numbers of the finished blocks; delete those of another run."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            state = json.dumps(
                [
                    fingerprint(delta_state_dict(pl_module)),
                    base_fingerprint(pl_module.backbone),
                    *(str(dict(pl_module.hparams)), trainer.precision),
                    *(pl_module.mean, pl_module.std, pl_module.cell),
                    *(datamodule.size, datamodule.stride, datamodule.block),
                    *(str(datamodule.value_range), datamodule.bands),
                    datamodule.predict_dataset.channels,
                    datamodule.predict_dataset.nodata,
                    *_file_state(datamodule.path),
                ]
            )
            identity = hashlib.sha256(state.encode()).hexdigest()
            note = self._parts / 'identity'
            if not note.exists() or note.read_text() != identity:
                shutil.rmtree(self._parts, ignore_errors=True)
                self._parts.mkdir(parents=True)
                note.write_text(identity)
        trainer.strategy.barrier('blocks cleared')
        done = {int(path.stem) for path in self._parts.glob('*.npy')}
        # No process writes before all have looked.
        trainer.strategy.barrier('blocks listed')
        if done:
            rank_zero_info(f'{self._target}: {len(done)} blocks are already done')
        return done

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
        path = self._parts / f'{int(batch["block"])}.npy'
        with replacing(path) as part, part.open('wb') as file:
            np.save(file, prediction.cpu().numpy())

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say what an interrupted map has."""
        parts = getattr(self, '_parts', None)
        if parts is not None and parts.is_dir() and trainer.is_global_zero:
            rank_zero_info(
                f'{len(list(parts.glob("*.npy")))} blocks of {self._target} are kept:'
                ' repeat the command to continue'
            )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the blocks."""
        trainer.strategy.barrier('blocks written')
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            self._join(datamodule, pl_module)
            shutil.rmtree(self._parts)
            rank_zero_info(f'scene: {self._target}')

    def _join(self, datamodule: Any, pl_module: Any) -> None:
        dataset, cell = datamodule.predict_dataset, pl_module.cell
        first = np.load(self._parts / '0.npy', mmap_mode='r')
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
                f'{datamodule.path} has no coordinate system, so {self._target} will'
                ' have none'
            )
        classes = first.dtype == np.uint8
        with (
            replacing(self._target) as part,
            rasterio.Env(GDAL_CACHEMAX=CACHE),
            rasterio.open(
                part,
                'w',
                driver='GTiff',
                count=len(first),
                height=-(-dataset.height // cell),
                width=-(-dataset.width // cell),
                dtype=first.dtype,
                **place,
                nodata=_NO_CLASS if classes else np.nan,
                compress='deflate',
                tiled=True,
                blockxsize=256,
                blockysize=256,
                BIGTIFF='IF_SAFER',
            ) as file,
        ):
            for number in range(dataset.blocks):
                top, left = (side // cell for side in dataset.corner(number))
                values = np.load(self._parts / f'{number}.npy')
                height, width = values.shape[1:]
                file.write(values, window=Window(left, top, width, height))


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
