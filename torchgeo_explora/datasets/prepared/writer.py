"""Write any data set in a compact form: shards of re-encoded samples."""

import errno
import io
import itertools
import json
import os
import sys
import tarfile
import traceback
import warnings
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from torch.utils.data import DataLoader, Dataset
from torchgeo.datasets import NonGeoDataset
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_explora.datasets.prepared.format import (
    Encoding,
    choose_encoding,
    encode_sample,
)
from torchgeo_explora.datasets.prepared.manifest import (
    INDEX,
    MANIFEST,
    PARTS,
    SCHEMA,
    checksum,
    locked,
    read_note,
    seal,
    shard_name,
    write_file,
)

# Attributes of a data set that are stored in the manifest.
_KEPT = ('split', 'bands', 'value_range', 'range_known', 'no_data')
# Number of samples that are read twice, to detect random ones.
_LOOKS = 5


def prepare(
    dataset: NonGeoDataset,
    output: str | os.PathLike[str],
    encoding: Literal['auto', 'jpeg', 'integer', 'exact'] = 'auto',
    quality: int = 90,
    samples_per_shard: int = 2000,
    workers: int = 0,
    progress: bool = True,
    drop: Collection[str] = (),
) -> str:
    """Write a data set in a compact form that is read many times faster.

    The samples are those that *dataset* returns, cropped and resized by its own
    arguments, with the same keys. They are stored in tar files that the webdataset
    library can stream; `Prepared` reads them by number.

    If it is interrupted, the same call continues, and the result has the same bytes as
    that of an uninterrupted run.

    Args:
        dataset: Any data set with a length whose samples have `image` and tensors,
            numbers or texts; ours, TorchGeo's, or another.
        output: Folder to write; one for each split.
        encoding: 'jpeg' (8 bits, lossy), 'integer' (rounded to whole numbers), 'exact'
            (float32, bit for bit), or 'auto': JPEG for true colour of 8 bits, integers
            for larger values, exact for small ones.
        quality: JPEG quality, 1 to 100.
        samples_per_shard: Samples in a shard.
        workers: Worker processes that encode; 0 for none.
        progress: Whether to show a progress bar.
        drop: Keys of the samples to leave out, such as those of other types.

    Returns:
        The folder.

    Raises:
        ValueError: If *output* has shards of another data set or of other arguments, if
            samples are random or cannot be encoded, or if an argument is wrong.
        RuntimeError: If another process is preparing into *output*.
        OSError: If the disk is full.
        NotPreparedError: If the manifest in *output* is damaged.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f'*quality* must be 1 to 100, not {quality}')
    if samples_per_shard < 1:
        raise ValueError(f'*samples_per_shard* must be 1 or more: {samples_per_shard}')
    folder = os.fspath(output)
    parts = os.path.join(folder, PARTS)
    first = dataset[0]
    if unknown := set(drop) - (first.keys() - {'image'}):
        raise ValueError(
            f'*drop* names {", ".join(sorted(unknown))}: what can be left out is'
            f' {", ".join(sorted(first.keys() - {"image"}))}'
        )
    value_range = getattr(dataset, 'value_range', None)
    chosen = choose_encoding(first, value_range) if encoding == 'auto' else encoding
    length = len(dataset)
    form = _Form(chosen, quality, frozenset(drop))
    probes = [_look(dataset, number, form) for number in _spread(length)]
    settings = {
        'version': 1,
        'dataset': _public_name(type(dataset)),
        'samples': length,
        'encoding': chosen,
        'quality': quality,
        'samples_per_shard': samples_per_shard,
        # Another crop, size or order changes the first and the last sample.
        'probes': [probes[0], probes[-1]],
    }
    _check_settings(folder, settings)
    if os.path.isfile(os.path.join(folder, MANIFEST)):
        return folder
    with locked(folder):
        # Another process may have started, and finished, in the meantime.
        _check_settings(folder, settings)
        for name in os.listdir(folder):
            # Left by a process that was killed.
            if name.endswith('.part'):
                os.remove(os.path.join(folder, name))
        write_file(os.path.join(parts, 'settings.json'), _dump(settings))
        jobs = _Jobs(dataset, folder, form, samples_per_shard)
        _write_shards(jobs, workers, progress)
        _finish(dataset, folder, settings, jobs.count)
    return folder


@dataclass(frozen=True)
class _Form:
    """How a sample is encoded."""

    encoding: Encoding
    quality: int
    drop: frozenset[str]

    def encode(self, sample: Mapping[str, Any]) -> dict[str, bytes]:
        kept = {key: value for key, value in sample.items() if key not in self.drop}
        return encode_sample(kept, self.encoding, self.quality)


def _public_name(kind: type) -> str:
    """Return the shortest path from which a class can be imported."""
    modules = list(itertools.accumulate(kind.__module__.split('.'), '{}.{}'.format))
    home = next(
        (name for name in modules if hasattr(sys.modules.get(name), kind.__qualname__)),
        kind.__module__,
    )
    return f'{home}.{kind.__qualname__}'


def _same_class(name: str, other: str) -> bool:
    """Return whether two names are of one class, wherever in its package it is."""
    first, second = name.split('.'), other.split('.')
    return (first[0], first[-1]) == (second[0], second[-1])


def _spread(length: int) -> list[int]:
    """Return the numbers of a few samples, including the first and the last."""
    return sorted({number * (length - 1) // (_LOOKS - 1) for number in range(_LOOKS)})


def _look(dataset: NonGeoDataset, number: int, form: _Form) -> list[int]:
    """Return the checksums of a sample, which must be the same at every visit.

    Raises:
        ValueError: If they are not.
    """
    found, again = (
        [zlib.crc32(data) for data in form.encode(dataset[number]).values()]
        for _ in range(2)
    )
    if found != again:
        raise ValueError(
            f'sample {number} of *dataset* differs from one visit to the next: its'
            f' random draws would be fixed for good. Give it a *seed*, or train without'
            f' preparing it'
        )
    return found


def _write_shards(jobs: '_Jobs', workers: int, progress: bool) -> None:
    """Write the shards that are missing.

    Raises:
        OSError: If one cannot be written, or a sample cannot be read.
        ValueError: If a sample cannot be encoded.
    """
    missing = [n for n in range(jobs.count) if not _is_done(jobs.folder, n)]
    jobs.numbers = missing
    loader: DataLoader[Any] = DataLoader(
        jobs, batch_size=None, num_workers=min(workers, len(missing))
    )
    with tqdm(
        total=jobs.length,
        initial=jobs.length - jobs.samples(missing),
        desc=os.path.basename(jobs.folder),
        unit=' samples',
        disable=None if progress else True,
    ) as bar:
        for found in loader:
            if isinstance(found, Exception):
                raise found
            bar.update(jobs.samples([int(found)]))


class _Jobs(Dataset[Any]):
    """One job per shard, done in a worker of a data loader."""

    def __init__(
        self,
        dataset: NonGeoDataset,
        folder: str,
        form: _Form,
        samples_per_shard: int,
    ) -> None:
        self.dataset, self.folder, self.form = dataset, folder, form
        self.size = samples_per_shard
        self.length = len(dataset)
        self.count = -(-self.length // self.size)
        self.numbers: list[int] = []

    def samples(self, numbers: list[int]) -> int:
        """Return the number of samples in some shards."""
        return sum(min(self.size, self.length - n * self.size) for n in numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int | Exception:
        """Write a shard and its note; return its number, or the error.

        A loader would replace the message of a worker's error with a traceback.
        """
        try:
            self._write(self.numbers[index])
        except (OSError, ValueError, RuntimeError) as error:
            error.add_note(traceback.format_exc())
            return error
        return self.numbers[index]

    def _write(self, number: int) -> None:
        start = number * self.size
        path = Path(self.folder) / shard_name(number)
        # Not `replacing`: it would report an unreadable sample as a failed write.
        part = path.with_name(f'.{path.name}.{os.getpid()}.part')
        skipped = []
        try:
            with part.open('wb') as file, _tar_writer(file) as writer:
                for i in range(start, min(start + self.size, self.length)):
                    sample = self.dataset[i]
                    # A data set that skips unreadable files returns the next sample.
                    if int(sample.get('index', i)) != i:
                        skipped.append(i)
                        continue
                    files = self.form.encode(sample)
                    writer.write({'__key__': f'{i:09}', **files})
            known: dict[str, Any] = {'skipped': skipped, 'sha256': checksum(part)}
            known |= {'bytes': part.stat().st_size, 'rows': _rows(part, number)}
            os.replace(part, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f'no room to write {path} ({error.strerror}): make room and run the'
                f' same command again, which keeps the finished shards',
            ) from error
        finally:
            part.unlink(missing_ok=True)
        write_file(
            os.path.join(self.folder, PARTS, f'{shard_name(number)}.json'), _dump(known)
        )


def _is_done(folder: str, number: int) -> bool:
    """Return whether a shard is complete."""
    name = shard_name(number)
    try:
        known = read_note(os.path.join(folder, PARTS, f'{name}.json'))
        return known['bytes'] == os.path.getsize(os.path.join(folder, name))
    except FileNotFoundError:
        return False


def _tar_writer(file: io.BufferedWriter) -> Any:
    """Return a writer whose bytes depend only on the samples."""
    # Imported late: reading by number does not need this large library.
    from webdataset import TarWriter

    return TarWriter(file, encoder=False, mtime=0.0, user='root', group='root')


def _rows(path: Path, number: int) -> list[dict[str, Any]]:
    """Return the index rows of the samples in a shard."""
    rows: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, name = member.name.partition('.')
            empty: dict[str, Any] = {
                'names': [],
                'offsets': [],
                'sizes': [],
                'sums': [],
            }
            row = rows.setdefault(key, {'key': key, 'shard': number, **empty})
            content = tar.extractfile(member)
            assert content is not None
            row['names'].append(name)
            row['offsets'].append(member.offset_data)
            row['sizes'].append(member.size)
            row['sums'].append(zlib.crc32(content.read()))
    return list(rows.values())


def _check_settings(folder: str, settings: dict[str, Any]) -> None:
    """Raise if a folder was started with other settings."""
    for path, name in (
        (os.path.join(folder, MANIFEST), 'settings'),
        (os.path.join(folder, PARTS, 'settings.json'), None),
    ):
        if not os.path.isfile(path):
            continue
        found = read_note(path)
        found = found if name is None else found[name]
        if _same_class(found['dataset'], settings['dataset']):
            # Earlier versions wrote the module that the class was defined in.
            found = found | {'dataset': settings['dataset']}
        if found != settings:
            other = [key for key in settings if settings[key] != found.get(key)]
            raise ValueError(
                f'{folder} was prepared from another data set or with other arguments'
                f' ({", ".join(other)} differ): pass another *output*, or remove it'
            )


def _finish(
    dataset: NonGeoDataset, folder: str, settings: dict[str, Any], count: int
) -> None:
    """Write the index and the manifest, and remove the notes."""
    parts = os.path.join(folder, PARTS)
    places = list(getattr(dataset, 'places', ()))
    shards, tables, skipped = [], [], []
    for number in range(count):
        known = read_note(os.path.join(parts, f'{shard_name(number)}.json'))
        for row in known['rows']:
            row['place'] = places[int(row['key'])] if places else ''
        tables.append(pa.Table.from_pylist(known['rows'], SCHEMA))
        skipped += known['skipped']
        shards.append(
            {
                'name': shard_name(number),
                'samples': len(known['rows']),
                'bytes': known['bytes'],
                'sha256': known['sha256'],
            }
        )
    if skipped:
        warnings.warn(
            f'{len(skipped)} of {settings["samples"]} samples could not be read and are'
            f' left out, such as number {skipped[0]}; {MANIFEST} lists them',
            stacklevel=3,
        )
    table = pa.concat_tables(tables).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    index = os.path.join(folder, INDEX)
    write_file(index, sink.getvalue().to_pybytes())
    labels = getattr(dataset, 'classes', None)
    manifest: dict[str, Any] = {
        'settings': settings,
        'shards': shards,
        'index': {'bytes': os.path.getsize(index), 'sha256': checksum(index)},
        'skipped': skipped,
        'classes': None if labels is None else list(labels),
        'attributes': {
            name: getattr(dataset, name) for name in _KEPT if hasattr(dataset, name)
        },
    }
    # In the form in which it will be read: tuples become lists.
    manifest = json.loads(_dump(manifest))
    manifest['sha256'] = seal(manifest)
    write_file(os.path.join(folder, MANIFEST), _dump(manifest))
    for name in os.listdir(parts):
        os.remove(os.path.join(parts, name))
    os.rmdir(parts)


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
