"""A prepared data set, streamed from disk or object storage."""

import hashlib
import itertools
import json
import posixpath
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.prepared.format import decode_sample
from torchgeo_explora.datasets.prepared.manifest import (
    INDEX,
    MANIFEST,
    NotPreparedError,
    check_manifest,
    compare,
)
from torchgeo_explora.datasets.prepared.source import ConnectionLostError, open_source
from torchgeo_explora.datasets.tables.dataset import OnError, check_choice

#: The key of a sample and its files, by suffix.
type _Files = tuple[str, dict[str, bytes]]


class PreparedStream(IterableDataset[dict[str, Any]]):
    """The samples of a prepared folder in the order of their bytes.

    For data that is not on a local disk: whole shards are read from start to end. Each
    process and each of its workers has its own shards, so there must be at least as
    many shards as workers; a worker with fewer shards repeats them sooner. Every sample
    is compared with its checksum.

    Args:
        root: A path, or an address that fsspec opens, such as `https://host/fmow`,
            `s3://bucket/fmow` (with the package s3fs) or `gs://bucket/fmow` (gcsfs).
        split: Folder in *root*; None if *root* is the folder itself.
        buffer: Size of the buffer in which samples are mixed. With 1 or more, shards
            come in random order and without end; with 0, every sample comes once and
            in order.
        seed: Seed of the order.
        on_error: 'raise' stops at a damaged sample, and at a shard whose connection
            was lost five times; 'skip' warns and leaves them out.

    Attributes:
        classes: Class names of the data set it was made from.
        attributes: `bands`, `value_range` and `range_known`, if that data set had
            them.
        samples: Number of samples.

    Raises:
        NotPreparedError: If the manifest or the index is missing or damaged.
    """

    def __init__(
        self,
        root: str,
        split: str | None = None,
        buffer: int = 0,
        seed: int = 0,
        on_error: OnError = 'raise',
    ) -> None:
        """Read the manifest and the checksums."""
        check_choice('on_error', on_error, ('raise', 'skip'))
        if buffer < 0:
            raise ValueError(f'*buffer* must be 0 or more, not {buffer}')
        self.folder = root if split is None else posixpath.join(root, split)
        self.split = split
        self.buffer, self.seed, self.on_error = buffer, seed, on_error
        self.manifest = self._read_manifest()
        self._index = self._read_index()
        self.classes: list[str] = self.manifest['classes'] or []
        self.attributes: dict[str, Any] = self.manifest['attributes']
        self.urls = [self._url(shard['name']) for shard in self.manifest['shards']]
        self.samples: int = sum(s['samples'] for s in self.manifest['shards'])

    def _url(self, name: str) -> str:
        return posixpath.join(self.folder, name)

    def _fetch(self, name: str) -> bytes:
        try:
            with open_source(self._url(name)) as file:
                return file.read()
        except ImportError as error:
            raise NotPreparedError(
                f'{self.folder} cannot be opened: {error}'
            ) from error
        except (OSError, ValueError) as error:
            raise NotPreparedError(
                f'{self.folder} has no {name} that can be read ({error}): pass the'
                f' folder or the address of what `explora prepare` wrote'
            ) from error

    def _read_manifest(self) -> dict[str, Any]:
        data = self._fetch(MANIFEST)
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise NotPreparedError(
                f'{self.folder} has no {MANIFEST} that can be read ({error}): copy it'
                f' again'
            ) from error
        return check_manifest(manifest, self.folder)

    def _read_index(self) -> Tensor:
        """Return the bytes of the index, in memory that workers share, (n,) uint8."""
        data = self._fetch(INDEX)
        expected = self.manifest['index']['sha256']
        if hashlib.sha256(data).hexdigest() != expected:
            raise NotPreparedError(
                f'{INDEX} of {self.folder} has changed: its SHA-256 is not {expected};'
                f' copy it again'
            )
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).share_memory_()

    @cached_property
    def table(self) -> pa.Table:
        """Keys, places, names and checksums of all samples."""
        table = pa.ipc.open_file(pa.py_buffer(self._index.numpy())).read_all()
        return table.select(['key', 'place', 'names', 'sums'])

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """The numbers of all samples, in order."""
        return self.table['key'].to_numpy().astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made from the index: a spawned worker shares its bytes."""
        return {k: v for k, v in self.__dict__.items() if k not in ('table', 'keys')}

    @property
    def places(self) -> list[str]:
        """A name for the place of each sample, '' if unknown."""
        return self.table['place'].to_pylist()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield samples.

        Raises:
            ValueError: If there are more processes and workers than shards.
            NotPreparedError: If a shard has fewer samples than were written.
            ConnectionLostError: If a shard cannot be reached after several tries, and
                *on_error* is 'raise'.
            UnreadableImageError: If a sample's bytes are not those that were written,
                and *on_error* is 'raise' or no sample is intact.
        """
        import webdataset as wds

        _, processes, _, workers = wds.utils.pytorch_worker_info()
        self._check_shards(processes, workers)
        stages = [
            wds.SimpleShardList(self.urls),
            wds.split_by_node,
            wds.split_by_worker,
        ]
        if self.buffer > 0:
            # The order of an epoch follows from the seed and the epoch's number.
            stages.append(wds.detshuffle(len(self.urls), seed=self.seed))
        stages.append(self._whole_shards)
        if self.buffer > 0:
            stages.append(wds.detshuffle(self.buffer, self.buffer, self.seed))
        stream = wds.DataPipeline(*stages)
        if self.buffer > 0:
            # Endless, so that processes with unequal shards never wait for each other.
            stream = stream.repeat()
        for key, files in stream:
            yield decode_sample(files) | {'index': torch.tensor(int(key))}

    def _check_shards(self, processes: int, workers: int) -> None:
        if processes * workers > len(self.urls):
            raise ValueError(
                f'{self.folder} has {len(self.urls)} shards for {processes} processes'
                f' with {workers} workers each: every worker needs a shard. Use fewer'
                f' workers, or prepare with a smaller *samples_per_shard*'
            )

    def _whole_shards(self, sources: Iterable[dict[str, str]]) -> Iterator[_Files]:
        """Yield the intact samples of shards, and raise if a shard was cut short."""
        shards = dict(zip(self.urls, self.manifest['shards'], strict=True))
        intact = damaged = 0
        for source in sources:
            url, count = source['url'], 0
            expected = shards[url]['samples']
            try:
                for key, files in _read_shard(url, shards[url]['bytes']):
                    count += 1
                    try:
                        self._compare(key, files, url)
                    except UnreadableImageError as error:
                        if self.on_error == 'raise':
                            raise
                        damaged += 1
                        text = str(error).partition('. Replace')[0]
                        warnings.warn(f'skipped a sample: {text}', stacklevel=2)
                        continue
                    intact += 1
                    yield key, files
            except ConnectionLostError as error:
                if self.on_error == 'raise':
                    raise
                damaged += expected - count
                warnings.warn(
                    f'skipped {expected - count} samples: {error}', stacklevel=2
                )
                continue
            if count != expected:
                raise NotPreparedError(
                    f'{url} has {count} samples, expected {expected}: it was cut short'
                    f' or damaged; copy it again'
                )
        if damaged and not intact:
            raise UnreadableImageError(f'no sample of {self.folder} can be read')

    def _compare(self, key: str, files: dict[str, bytes], url: str) -> None:
        number = int(key) if key.isdecimal() else -1
        row = int(np.searchsorted(self.keys, number))
        if row == len(self.keys) or self.keys[row] != number:
            raise UnreadableImageError(
                f'sample {key} in {url} is not in {INDEX}. Replace the file'
            )
        names, sums = (self.table[name][row].as_py() for name in ('names', 'sums'))
        compare(files, dict(zip(names, sums, strict=True)), key, url)


def _read_shard(url: str, size: int) -> Iterator[_Files]:
    """Yield the samples of a shard, in order.

    Args:
        url: Its path or address.
        size: Its size in bytes.

    Raises:
        ConnectionLostError: If a remote one cannot be read, after several tries.
        NotPreparedError: If it cannot be opened, or ends in the middle of a sample.
    """
    try:
        # Without decompression, and without links to anything outside the shard.
        with (
            open_source(url, size) as file,
            tarfile.open(fileobj=file, mode='r|') as tar,
        ):
            for key, members in itertools.groupby(tar, lambda m: _split(m.name)[0]):
                yield key, {_split(m.name)[1]: _content(tar, m) for m in members}
    except ConnectionLostError:
        raise
    except (tarfile.TarError, OSError) as error:
        raise NotPreparedError(
            f'{url} cannot be read to its end ({error}): it was cut short or damaged;'
            f' copy it again'
        ) from error


def _split(name: str) -> tuple[str, str]:
    """Return the key of a sample and the suffix of one of its files."""
    key, _, suffix = name.partition('.')
    return key, suffix


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None or member.issparse():
        raise tarfile.ReadError(f'{member.name} is not a plain file')
    return file.read()
