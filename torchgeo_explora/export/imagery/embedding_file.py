"""A file of embeddings, read without loading all of it."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely  # type: ignore[import-untyped]
import torch
from pyproj import CRS, Transformer
from torch import Tensor
from torch.nn.functional import normalize

_ROWS = 8192


class EmbeddingFile:
    """What `embed` or an `EmbeddingWriter` wrote.

    Args:
        path: The Parquet file.

    Attributes:
        notes: How the embeddings were made.
        crs: Coordinate system of the geometries, None if there are none.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a file of embeddings.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the metadata."""
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f'{self.path} does not exist or is not a file')
        try:
            self._file = pq.ParquetFile(self.path)
            metadata = self._file.schema_arrow.metadata or {}
            self.notes: dict[str, Any] = json.loads(metadata[b'explora'])
            geo = json.loads(metadata[b'geo']) if b'geo' in metadata else None
            self.crs = None
            if geo is not None:
                column = geo['columns'][geo['primary_column']]
                self.crs = CRS.from_json_dict(column['crs'])
            self.names: list[str] = self._file.schema_arrow.names
            has_column = 'embedding' in self.names
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise ValueError(self._refusal()) from error
        if not has_column:
            raise ValueError(self._refusal())

    def _refusal(self) -> str:
        return (
            f'{self.path} is not a file of embeddings: give one that `explora embed`'
            ' wrote'
        )

    def __len__(self) -> int:
        """Return the number of embeddings."""
        return int(self._file.metadata.num_rows)

    def vectors(self) -> Iterator[Tensor]:
        """Yield L2-normalised embeddings in blocks, (n, D) float32."""
        columns = ['embedding', *(n for n in ('scale',) if n in self.names)]
        for batch in self._file.iter_batches(_ROWS, columns=columns):
            values = batch['embedding'].flatten().to_numpy().astype(np.float32)
            # The scale of a row does not change its direction.
            yield normalize(torch.from_numpy(values).view(len(batch), -1), dim=1)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return rows by their positions in the file, without embeddings.

        Geometries are in longitude and latitude.
        """
        wanted = [name for name in self.names if name not in ('embedding', 'scale')]
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for group in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(group).num_rows
            here = [n - start for n in numbers if start <= n < start + count]
            if here:
                table = self._file.read_row_group(group, columns=wanted)
                for place, row in zip(here, table.take(here).to_pylist(), strict=True):
                    found[start + place] = self._on_earth(row)
            start += count
        return [found[number] for number in numbers]

    def _on_earth(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.crs is not None:
            change = Transformer.from_crs(self.crs, 'OGC:CRS84', always_xy=True)
            row['geometry'] = shapely.transform(
                shapely.from_wkb(row['geometry']), change.transform, interleaved=False
            )
        return row

    def at(self, longitude: float, latitude: float) -> list[int]:
        """Return the positions in the file of the windows that contain a point.

        Raises:
            ValueError: If there are no geometries, or none contains it.
        """
        if self.crs is None:
            raise ValueError(
                f'{self.path} has no geometries, since it is from a folder of images:'
                ' search with an image'
            )
        change = Transformer.from_crs('OGC:CRS84', self.crs, always_xy=True)
        point = shapely.Point(*change.transform(longitude, latitude))
        found: list[int] = []
        start = 0
        for batch in self._file.iter_batches(_ROWS, columns=['geometry']):
            shapes = shapely.from_wkb(batch['geometry'].to_pylist())
            inside = np.flatnonzero(shapely.covers(shapes, point))
            found += (start + inside).tolist()
            start += len(batch)
        if not found:
            raise ValueError(
                f'no window of {self.path} contains the point {longitude:g},'
                f'{latitude:g}: give longitude,latitude in degrees, within the scenes'
            )
        return found

    def vectors_of(self, numbers: Sequence[int]) -> Tensor:
        """Return L2-normalised embeddings by their positions in the file, (n, D)."""
        found, start = [], 0
        for block in self.vectors():
            here = [n - start for n in numbers if start <= n < start + len(block)]
            found.append(block[here])
            start += len(block)
        return torch.cat(found)
