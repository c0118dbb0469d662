"""A prepared data set, read by number."""

import os
from typing import Any, Literal

import pyarrow as pa
from torch import Tensor

from torchgeo_explora.datasets.pixels.figure import true_colour
from torchgeo_explora.datasets.pixels.image_file import naming
from torchgeo_explora.datasets.pixels.scaling import to_unit
from torchgeo_explora.datasets.prepared.format import decode_sample
from torchgeo_explora.datasets.prepared.manifest import (
    INDEX,
    NotPreparedError,
    compare,
    find_damage,
    read_manifest,
    verify,
)
from torchgeo_explora.datasets.tables.dataset import (
    OnError,
    TableDataset,
    Transform,
    check_choice,
)


class Prepared(TableDataset):
    """The output of `prepare`: the samples of the data set it was made from.

    The index is compared with its checksum at the start, and every sample when it is
    read.

    Args:
        root: The folder, or the folder above it.
        split: Folder in *root*; None if *root* is the folder itself.
        check: 'size' compares the length of every shard, and every byte of the index,
            at the start; 'sha256' compares every byte of all files, which takes as long
            as reading them.
        on_error: 'raise' stops at a damaged sample, 'skip' uses the next one.
        transforms: Applied to each sample.

    Attributes:
        classes: Class names of the data set it was made from.
        bands: Names of its bands. This and `value_range`, `range_known` and `no_data`
            exist if that data set had them.
        manifest: The contents of the manifest.

    Raises:
        NotPreparedError: If the folder is not ready, the index is damaged, or a shard
            is cut short.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: str | None = None,
        check: Literal['size', 'sha256'] = 'size',
        on_error: OnError = 'raise',
        transforms: Transform | None = None,
    ) -> None:
        """Open the index and look at the shards."""
        check_choice('check', check, ('size', 'sha256'))
        self.root = os.fspath(root)
        self.folder = self.root if split is None else os.path.join(self.root, split)
        self.manifest = read_manifest(self.folder)
        wrong = verify(self.folder) if check == 'sha256' else self._faults()
        if wrong:
            raise NotPreparedError(
                f'{wrong[0]} ({len(wrong)} such files): fetch it again, or remove the'
                f' file and manifest.json and prepare again'
            )
        self.classes = self.manifest['classes'] or ()
        attributes = dict(self.manifest['attributes'])
        self.split = split if split is not None else attributes.pop('split', None)
        for name in ('bands', 'value_range', 'range_known', 'no_data'):
            if name in attributes:
                setattr(self, name, attributes[name])
        self.shards = [
            os.path.join(self.folder, shard['name'])
            for shard in self.manifest['shards']
        ]
        self._table: pa.Table | None = None
        self._open: dict[int, Any] = {}
        self._process = os.getpid()
        listed = sum(shard['samples'] for shard in self.manifest['shards'])
        if listed != self.table.num_rows:
            raise NotPreparedError(
                f'{INDEX} of {self.folder} has {self.table.num_rows} samples, its'
                f' shards have {listed}: copy the folder again'
            )
        super().__init__(self.table.num_rows, self.folder, on_error, transforms)

    def _faults(self) -> list[str]:
        # Arrow trusts the index: a damaged one could give wrong samples or a crash.
        index = os.path.join(self.folder, INDEX)
        wrong = [*filter(None, [find_damage(index, self.manifest['index'])])]
        for shard in self.manifest['shards']:
            path = os.path.join(self.folder, shard['name'])
            size = os.path.getsize(path) if os.path.isfile(path) else 0
            if size != shard['bytes']:
                wrong.append(
                    f'{path} has {size} bytes, expected {shard["bytes"]}: it was cut'
                    f' short'
                )
        return wrong

    @property
    def table(self) -> pa.Table:
        """The index, memory-mapped."""
        if self._table is None:
            with pa.memory_map(os.path.join(self.folder, INDEX)) as source:
                self._table = pa.ipc.open_file(source).read_all()
        return self._table

    @property
    def places(self) -> list[str]:
        """A name for the place of each sample, '' if unknown."""
        return self.table['place'].to_pylist()

    def read(self, index: int) -> dict[str, Any]:
        """Return a sample with the keys it had before, without `index`.

        Raises:
            UnreadableImageError: If its bytes are not those that were written.
        """
        row = {
            name: self.table[name][index].as_py() for name in self.table.schema.names
        }
        path = self.shards[row['shard']]
        with naming(path):
            handle = self._handle(row['shard'])
            files = {
                name: os.pread(handle, size, offset)
                for name, offset, size in zip(
                    row['names'], row['offsets'], row['sizes'], strict=True
                )
            }
            sums = dict(zip(row['names'], row['sums'], strict=True))
            compare(files, sums, row['key'], path)
            sample = decode_sample(files)
        sample.pop('index', None)
        return sample

    def _handle(self, shard: int) -> int:
        """Return an open file of this process."""
        if self._process != os.getpid():
            self._open, self._process = {}, os.getpid()
        if shard not in self._open:
            self._open[shard] = open(self.shards[shard], 'rb')  # noqa: SIM115
        return self._open[shard].fileno()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files and the mapped table."""
        return {**self.__dict__, '_open': {}, '_table': None}

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue in [0, 1], or the first three bands."""
        unit = to_unit(image, getattr(self, 'value_range', (0.0, 255.0)))
        return true_colour(unit, getattr(self, 'bands', ()))
