"""Embeddings of a prediction run, as one Parquet file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor


class EmbeddingWriter(BasePredictionWriter):
    """Write (index, path, label, embedding) rows in the order of the input.

    `path` and `label` are columns where the batches have them. Several processes write
    a part each; the first one joins the parts.

    Args:
        path: File to write; `embeddings.parquet` in the trainer's root folder if None.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """Write while predicting."""
        super().__init__(write_interval='batch')
        self.path = Path(path) if path is not None else None
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the place of the file."""
        target = self.path or Path(trainer.default_root_dir) / 'embeddings.parquet'
        target.parent.mkdir(parents=True, exist_ok=True)
        self._target = target
        self._part = self._part_of(trainer.global_rank)
        self._rows = 0

    def _part_of(self, rank: int) -> Path:
        return self._target.with_name(f'.{self._target.name}.{rank}.part')

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
        """Append a batch to this process's part."""
        size = len(prediction)
        # Data that has no index of its own is numbered as it comes.
        index = list(batch_indices or range(self._rows, self._rows + size))
        self._rows += size
        columns: dict[str, pa.Array] = {'index': pa.array(index, pa.int64())}
        if 'path' in batch:
            columns['path'] = pa.array([str(path) for path in batch['path']])
        label = batch.get('label')
        if isinstance(label, Tensor) and label.ndim == 1:
            columns['label'] = pa.array(label.cpu().numpy())
        values = prediction.float().cpu().contiguous().numpy()
        columns['embedding'] = pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), values.shape[1]
        )
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._part, table.schema)
        self._writer.write_table(table)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the parts and join them."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        trainer.strategy.barrier('embeddings')
        if not trainer.is_global_zero:
            return
        parts = [self._part_of(rank) for rank in range(trainer.world_size)]
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
        rank_zero_info(f'embeddings: {self._target}')
