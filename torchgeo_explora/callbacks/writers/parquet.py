"""Predictions of a run, as one Parquet file."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import Tensor

from torchgeo_explora.adapt import base_fingerprint, delta_state_dict, fingerprint
from torchgeo_explora.callbacks.writers.geoparquet import (
    geo_metadata,
    geometry_columns,
    output_crs,
)
from torchgeo_explora.callbacks.writers.part_writer import PartWriter
from torchgeo_explora.datasets.tables.index_file import file_stamp
from torchgeo_explora.version import __version__
from torchgeo_explora.writing import replacing

type Dtype = Literal['float32', 'float16', 'int8']
# Rows that are held at once while parts are joined.
_ROWS = 8192


class EmbeddingWriter(PartWriter):
    """Write (index, path, label, bounds, embedding) rows in the order of the input.

    `path`, `label` and `bounds` are columns if the batches have them. `bounds` are
    those of TorchGeo's geospatial data sets, (xmin, xmax, ymin, ymax) in the units of
    their coordinate system. An image that occurs twice, because of a sampler or a
    skipped file, is written once.

    For `ScenesDataModule` the file is GeoParquet 1.1: `scene` instead of path, `time`
    (taken as UTC), the window's `column`, `row`, `width` and `height` in pixels of the
    scene, `no_data` (the share of its pixels without data), `geometry` and `bbox`.

    The file's metadata `explora` records the fingerprint of the model and how images
    were prepared. See `PartWriter` for runs that are interrupted or shared.

    Args:
        path: File to write; `embeddings.parquet` in the trainer's root folder if None.
        dtype: Type of the values. With 'int8', the column `scale` has the factor that
            restores a row's values, up to rounding.
        crs: Coordinate system of the geometries. If None, that of the scenes, or
            longitude and latitude if they have several.
    """

    #: Name of the column of values.
    column = 'embedding'
    file = 'embeddings.parquet'
    suffix = '.arrow'

    def __init__(
        self,
        path: str | Path | None = None,
        dtype: Dtype = 'float32',
        crs: str | None = None,
    ) -> None:
        """Write while predicting.

        Raises:
            ValueError: If the type or the coordinate system is not known.
        """
        super().__init__(path)
        if dtype not in ('float32', 'float16', 'int8'):
            raise ValueError(
                f"*dtype* is {dtype!r}: choose 'float32', 'float16' or 'int8'"
            )
        if crs is not None:
            output_crs((), crs)
        self.dtype, self.crs = dtype, crs
        self._seen = 0

    def state(self, trainer: Trainer, pl_module: Any) -> list[Any]:
        """Return what the parts depend on besides the model."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset = datamodule.predict_dataset
        if hasattr(dataset, 'identity'):
            source = dataset.identity()
        else:
            source = [[p, file_stamp(p)] for p in getattr(dataset, 'paths', ())]
        return [
            *(type(self).__name__, self.dtype, self.crs),
            *(datamodule.batch_size, len(dataset), source),
            *(str(datamodule.value_range), datamodule.bands),
            getattr(pl_module, 'pooling', None),
        ]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data module skip finished parts."""
        super().setup(trainer, pl_module, stage)
        if hasattr(_dataset(trainer), 'footprints'):
            # Lightning would keep every row until the end, which may not fit in memory.
            trainer.predict_loop.return_predictions = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no rows."""
        super().on_predict_start(trainer, pl_module)
        self._seen = 0

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
        """Write a batch to its own part.

        Raises:
            ValueError: If there are several loaders.
        """
        if dataloader_idx:
            raise ValueError(
                'images of several loaders would share their numbers: predict one data'
                ' set at a time'
            )
        index = self._numbers(trainer, len(prediction), batch_indices, batch)
        self._seen += len(index)
        columns: dict[str, pa.Array] = {'index': pa.array(index, pa.int64())}
        dataset = _dataset(trainer)
        if hasattr(dataset, 'footprints'):
            columns |= _places(dataset, index, self.crs)
            columns['no_data'] = pa.array(batch['no_data'].float().cpu().numpy())
        elif 'path' in batch:
            columns['path'] = pa.array([str(path) for path in batch['path']])
        label = batch.get('label')
        if isinstance(label, Tensor) and label.ndim == 1:
            columns['label'] = pa.array(label.cpu().numpy())
        bounds = batch.get('bounds')
        if isinstance(bounds, Tensor) and bounds.ndim == 2:
            # x, y and time, each as start, stop and step
            columns['bounds'] = _rows(bounds[:, [0, 1, 3, 4]].double())
        columns |= self.columns(prediction)
        table = pa.table(columns)
        if 'kept' in batch:
            table = table.filter(pa.array(batch['kept'].cpu().numpy()))
        with (
            replacing(self.part(self.number(trainer, batch, batch_idx))) as part,
            pa.OSFile(str(part), 'wb') as sink,
            pa.ipc.new_file(sink, table.schema) as file,
        ):
            file.write_table(table)

    def columns(self, prediction: Any) -> dict[str, pa.Array]:
        """Return the columns of a batch's prediction, here (B, D)."""
        values = prediction.float()
        if self.dtype == 'float16':
            values = values.half()
        if self.dtype != 'int8':
            return {self.column: _rows(values)}
        scale = values.abs().amax(1).clamp(min=1e-30) / 127
        small = (values / scale[:, None]).round().char()
        return {'scale': pa.array(scale.cpu().numpy()), self.column: _rows(small)}

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
        first, world = self._seen, trainer.world_size
        return [(first + i) * world + trainer.global_rank for i in range(size)]

    def join(self, trainer: Trainer, pl_module: Any, parts: list[Path]) -> None:
        """Write the rows of all parts, in the order of the input."""
        # A process without images wrote no part.
        rows = sum(_read(part).num_rows for part in parts)
        if not rows:
            rank_zero_warn(
                f'no {self.target.stem}: there was no image to predict on, or none had'
                ' data'
            )
            return
        notes = self._notes(trainer, pl_module, parts)
        numbered = hasattr(getattr(trainer, 'datamodule', None), 'finished')
        tables: Iterator[pa.Table] = map(_read, parts)
        if not numbered:
            tables = _once(tables, in_order=trainer.world_size == 1)
        schema = _read(parts[0]).schema.with_metadata(notes)
        with replacing(self.target) as place, pq.ParquetWriter(place, schema) as file:
            for table in _gathered(tables):
                file.write_table(table.replace_schema_metadata(notes))
        rank_zero_info(f'{self.target.stem}: {self.target}')

    def _notes(
        self, trainer: Trainer, pl_module: Any, parts: list[Path]
    ) -> dict[str, str]:
        """Return the metadata of the file."""
        notes: dict[str, str] = {}
        dataset = _dataset(trainer)
        if hasattr(dataset, 'footprints'):
            boxes = pa.chunked_array([_read(part)['bbox'] for part in parts])
            crs = output_crs(dataset.systems, self.crs)
            if self.crs is None and len(set(dataset.systems)) > 1:
                rank_zero_info(
                    f'the scenes are in {", ".join(sorted(set(dataset.systems)))}: the'
                    ' geometries are in longitude and latitude (OGC:CRS84)'
                )
            notes |= geo_metadata(crs, boxes.combine_chunks())
        if hasattr(pl_module, 'backbone'):
            bands = pl_module.raw_images.bands
            ours = {
                'version': __version__,
                'model': pl_module.backbone.arguments.get('model', ''),
                'fingerprint': model_fingerprint(pl_module.backbone),
                'image_size': pl_module.image_size,
                'in_channels': pl_module.backbone.in_channels,
                'pooling': getattr(pl_module, 'pooling', None),
                'mean': list(pl_module.mean),
                'std': list(pl_module.std),
                'bands': None if bands is None else list(bands),
                'value_range': pl_module.raw_images.value_range,
            }
            notes['explora'] = json.dumps(ours)
        return notes


def model_fingerprint(backbone: Any) -> str | None:
    """Return the fingerprint of a backbone; with a delta, as `fold_delta` sets it."""
    base, delta = base_fingerprint(backbone), delta_state_dict(backbone)
    if not delta:
        return base
    return hashlib.sha256(f'{base}\n{fingerprint(delta)}'.encode()).hexdigest()


def _dataset(trainer: Any) -> Any:
    return getattr(getattr(trainer, 'datamodule', None), 'predict_dataset', None)


def _places(dataset: Any, index: list[int], crs: str | None) -> dict[str, pa.Array]:
    """Return the columns that say where windows are."""
    found = dataset.footprints(index)
    times = [_in_utc(time) for time in found.times]
    window = dict(
        zip(('column', 'row', 'width', 'height'), found.windows.T, strict=True)
    )
    return {
        'scene': pa.array(found.scenes, pa.string()),
        'time': pa.array(times, pa.timestamp('us', 'UTC')),
        **{name: pa.array(values, pa.int32()) for name, values in window.items()},
        **geometry_columns(
            found.corners, found.systems, output_crs(dataset.systems, crs)
        ),
    }


def _in_utc(time: str) -> datetime | None:
    """Return an ISO time, in UTC if it names no zone; None where there is none."""
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or UTC)


def _read(part: Path) -> pa.Table:
    with pa.memory_map(str(part)) as source:
        return pa.ipc.open_file(source).read_all()


def _once(tables: Iterator[pa.Table], in_order: bool) -> Iterator[pa.Table]:
    """Yield each row once; a sampler repeats samples to fill the last batch."""
    if not in_order:
        tables = iter([pa.concat_tables(tables).sort_by('index')])
    seen: set[int] = set()
    for table in tables:
        new = []
        for number in table['index'].to_pylist():
            new.append(number not in seen)
            seen.add(number)
        yield table.filter(pa.array(new, pa.bool_()))


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows in tables of `_ROWS` and one with the rest."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(each.num_rows for each in held) >= _ROWS:
            whole = pa.concat_tables(held)
            yield whole[:_ROWS]
            held = [whole[_ROWS:]]
    if any(each.num_rows for each in held):
        yield pa.concat_tables(held)


def _rows(values: Tensor) -> pa.Array:
    """Return a matrix as one list per row."""
    array = values.cpu().contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), len(array[0]))


class DetectionWriter(EmbeddingWriter):
    """Write (index, path, boxes, labels, scores) rows, like `EmbeddingWriter`.

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
    """Write (index, path, bounds, mask) rows, like `EmbeddingWriter`.

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
