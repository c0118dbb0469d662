"""A prepared data set, as a stream from disk or object storage."""

import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from torchgeo_explora.datasets.prepared_format import decode_sample
from torchgeo_explora.datasets.prepared_manifest import MANIFEST, NotPreparedError


class PreparedStream(IterableDataset[dict[str, Any]]):
    """The samples of a prepared folder in the order of their bytes.

    For data that is not on a local disk: whole shards are read from end to end, by the
    webdataset library. Each process of each node, and each of its workers, has shards
    of its own, so there must be at least as many; one with fewer than others repeats
    them sooner.

    Args:
        root: Folder or address: a path, or what webdataset opens, such as
            ``https://host/fmow``, ``gs://bucket/fmow`` or ``s3://bucket/fmow`` (by the
            command ``aws``).
        split: Folder in *root*; None if *root* is the folder itself.
        buffer: Samples that are mixed: with 1 or more, shards come in a random order
            and without end, and each sample is drawn from a buffer of this size; with
            0, every sample comes once and in order.
        seed: Of the order.

    Attributes:
        classes: Class names of the data set it was made from.
        attributes: ``bands``, ``value_range`` and ``range_known``, as far as it had
            them.
        samples: Number of samples.

    Raises:
        NotPreparedError: If there is no manifest.
    """

    def __init__(
        self, root: str, split: str | None = None, buffer: int = 0, seed: int = 0
    ) -> None:
        """Read the manifest."""
        if buffer < 0:
            raise ValueError(f'*buffer* must be 0 or more, not {buffer}')
        self.folder = root if split is None else posixpath.join(root, split)
        self.split = split
        self.buffer, self.seed = buffer, seed
        self.manifest = self._read_manifest()
        self.classes: list[str] = self.manifest['classes'] or []
        self.attributes: dict[str, Any] = self.manifest['attributes']
        self.urls = [self._url(shard['name']) for shard in self.manifest['shards']]
        self.samples: int = sum(s['samples'] for s in self.manifest['shards'])

    def _url(self, name: str) -> str:
        url = posixpath.join(self.folder, name)
        return f'pipe:aws s3 cp {url} -' if url.startswith('s3://') else url

    def _read_manifest(self) -> dict[str, Any]:
        from webdataset import gopen

        try:
            with gopen(self._url(MANIFEST)) as file:
                return json.loads(file.read())
        except (OSError, ValueError) as error:
            raise NotPreparedError(
                f'{self.folder} has no {MANIFEST} that can be read: give the folder or'
                f' the address of what `explora prepare` wrote'
            ) from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield samples.

        Raises:
            ValueError: If there are more processes and workers than shards.
            NotPreparedError: If a shard has fewer samples than were written.
        """
        import webdataset as wds

        _, processes, _, workers = wds.utils.pytorch_worker_info()
        self._check_shards(processes, workers)
        mixed = self.buffer > 0
        stream = wds.WebDataset(
            self.urls,
            shardshuffle=len(self.urls) if mixed else False,
            # The order of an epoch follows from the seed and the epoch's number.
            detshuffle=mixed,
            nodesplitter=wds.split_by_node,
            workersplitter=wds.split_by_worker,
            seed=self.seed,
        ).compose(self._whole_shards)
        if mixed:
            shuffle = wds.detshuffle(self.buffer, self.buffer, self.seed)
            # Without end: processes with unlike shards must not wait for each other.
            stream = stream.compose(shuffle).repeat()
        for files in stream:
            sample = decode_sample(
                {name: data for name, data in files.items() if name[:2] != '__'}
            )
            yield sample | {'index': torch.tensor(int(files['__key__']))}

    def _check_shards(self, processes: int, workers: int) -> None:
        if processes * workers > len(self.urls):
            raise ValueError(
                f'{self.folder} has {len(self.urls)} shards for {processes} processes'
                f' with {workers} workers each, which need one apiece: use fewer'
                f' workers, or prepare with a smaller *samples_per_shard*'
            )

    def _whole_shards(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Pass samples on, and raise at the end of a shard that was cut short."""
        shards = zip(self.urls, self.manifest['shards'], strict=True)
        expected = {url: shard['samples'] for url, shard in shards}
        for url, group in itertools.groupby(samples, lambda sample: sample['__url__']):
            count = 0
            for sample in group:
                count += 1
                yield sample
            if count != expected[url]:
                raise NotPreparedError(
                    f'{url} has {count} samples, expected {expected[url]}: it was cut'
                    f' short; copy it again'
                )
