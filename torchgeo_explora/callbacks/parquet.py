"""Predictions of a run, as one Parquet file."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import Tensor

from torchgeo_explora.paths import expanded, require_writable


class EmbeddingWriter(BasePredictionWriter):
    """Write (index, path, label, bounds, embedding) rows in the order of the input.

    `path`, `label` and `bounds` are columns if the batches have them. `bounds` are
    those of TorchGeo's geospatial data sets, (xmin, xmax, ymin, ymax) in the units of
    their coordinate system. An image that occurs twice, because of a sampler or a
    skipped file, is written once. Several processes write one part each, and the first
    one joins the parts.

    Args:
        path: File to write; `embeddings.parquet` in the trainer's root folder if None.
    """

    #: Name of the column of values.
    column = 'embedding'
    #: Name of the file if no path is given.
    file = 'embeddings.parquet'

    def __init__(self, path: str | Path | None = None) -> None:
        """Write while predicting."""
        super().__init__(write_interval='batch')
        self.path = Path(expanded(path)) if path is not None else None
        self._writer: pq.ParquetWriter | None = None
        self._written: set[int] = set()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the place of the file.

        Raises:
            OSError: If it cannot be written.
        """
        target = self.path or Path(trainer.default_root_dir) / self.file
        require_writable(target.parent)
        if target.is_dir():
            raise IsADirectoryError(f'{target} is a folder: give the name of a file')
        self._target = target
        self._part = self._part_of(trainer.global_rank)
        self._part.unlink(missing_ok=True)
        self._written = set()

    def _part_of(self, rank: int) -> Path:
        return self._target.with_name(f'.{self._target.name}.{rank}.part')

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append a batch to this process's part.

        Raises:
            ValueError: If there are several loaders.
        """
        if dataloader_idx:
            raise ValueError(
                'images of several loaders would share their numbers: predict one data'
                ' set at a time'
            )
        index = self._numbers(trainer, len(prediction), batch_indices, batch)
        columns: dict[str, pa.Array] = {'index': pa.array(index, pa.int64())}
        if 'path' in batch:
            columns['path'] = pa.array([str(path) for path in batch['path']])
        label = batch.get('label')
        if isinstance(label, Tensor) and label.ndim == 1:
            columns['label'] = pa.array(label.cpu().numpy())
        bounds = batch.get('bounds')
        if isinstance(bounds, Tensor) and bounds.ndim == 2:
            # x, y and time, each as start, stop and step
            columns['bounds'] = _rows(bounds[:, [0, 1, 3, 4]].double())
        columns |= self.columns(prediction)
        new = [
            number not in self._written and number not in index[:place]
            for place, number in enumerate(index)
        ]
        self._written.update(index)
        table = pa.table(columns).filter(pa.array(new))
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._part, table.schema)
        self._writer.write_table(table)

    def columns(self, prediction: Any) -> dict[str, pa.Array]:
        """Return the columns of a batch's prediction, here (B, D)."""
        return {self.column: _rows(prediction.float())}

    def _numbers(
        self,
        trainer: Trainer,
        size: int,
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
    ) -> list[int]:
        """Return the position of each image in the input."""
        given = batch.get('index')
        if isinstance(given, Tensor) and given.ndim == 1:
            return given.tolist()
        # Samplers over scenes give places on Earth, not numbers.
        if batch_indices and all(isinstance(index, int) for index in batch_indices):
            return list(batch_indices)
        first, world = len(self._written), trainer.world_size
        return [(first + i) * world + trainer.global_rank for i in range(size)]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the parts and join them."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        trainer.strategy.barrier('embeddings')
        if not trainer.is_global_zero:
            return
        # A process without images wrote no part.
        ranks = range(trainer.world_size)
        parts = [part for rank in ranks if (part := self._part_of(rank)).exists()]
        if not parts:
            rank_zero_warn(f'no {self._target.stem}: there was no image to predict on')
            return
        if trainer.world_size > 1:
            table = pa.concat_tables([pq.read_table(part) for part in parts])
            table = table.sort_by('index')
            # A distributed sampler repeats samples to fill the last batch.
            index = table['index'].to_numpy()
            first = [i == 0 or index[i] != index[i - 1] for i in range(len(index))]
            pq.write_table(table.filter(pa.array(first)), parts[0])
            for part in parts[1:]:
                part.unlink()
        os.replace(parts[0], self._target)
        rank_zero_info(f'{self._target.stem}: {self._target}')


def _rows(values: Tensor) -> pa.Array:
    """Return a matrix as one list per row."""
    array = values.cpu().contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), len(array[0]))


class DetectionWriter(EmbeddingWriter):
    """Write (index, path, boxes, labels, scores) rows, as `EmbeddingWriter`.

    The last three are lists with one entry per object; boxes are (xmin, ymin, xmax,
    ymax) in pixels.
    """

    file = 'detections.parquet'

    def columns(self, prediction: list[dict[str, Any]]) -> dict[str, pa.Array]:
        """Return lists of boxes, labels and scores."""
        kinds = {
            'boxes': pa.list_(pa.list_(pa.float32(), 4)),
            'labels': pa.list_(pa.int64()),
            'scores': pa.list_(pa.float32()),
        }
        return {
            name: pa.array([found[name].tolist() for found in prediction], kind)
            for name, kind in kinds.items()
        }


class MaskWriter(EmbeddingWriter):
    """Write (index, path, bounds, mask) rows, as `EmbeddingWriter`.

    `mask` holds the bytes of a PNG image whose 8-bit values are the classes. For a
    scene, see `RasterWriter`.
    """

    column = 'mask'
    file = 'masks.parquet'

    def columns(self, prediction: Sequence[Tensor]) -> dict[str, pa.Array]:
        """Return the masks as PNG images, from (H, W) each."""
        masks = [mask.cpu().numpy().astype(np.uint8) for mask in prediction]
        return {self.column: pa.array([_png(mask) for mask in masks], pa.binary())}


def _png(mask: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(mask).save(buffer, format='png')
    return buffer.getvalue()


class ProbabilityWriter(EmbeddingWriter):
    """Write (index, path, label, bounds, probabilities) rows, as `EmbeddingWriter`."""

    column = 'probabilities'
    file = 'predictions.parquet'
