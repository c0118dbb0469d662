"""The contents of a prepared folder: shards, checksums, and where samples are."""

import hashlib
import json
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.writing import replacing

#: File that is written last: without it, a folder is not ready.
MANIFEST = 'manifest.json'
#: Table of the samples.
INDEX = 'index.arrow'
#: Folder of notes on finished shards, until all are finished.
PARTS = '.parts'

SCHEMA = pa.schema(
    {
        'key': pa.string(),
        'place': pa.string(),
        'shard': pa.int32(),
        'names': pa.list_(pa.string()),
        'offsets': pa.list_(pa.int64()),
        'sizes': pa.list_(pa.int64()),
        'sums': pa.list_(pa.int64()),
    }
)


class NotPreparedError(FileNotFoundError):
    """A folder that `prepare` has not finished, or that is damaged."""


def shard_name(number: int) -> str:
    """Return the name of a shard."""
    return f'shard-{number:06}.tar'


# Only the names that `shard_name` returns: never a path, never a command.
_SHARD = re.compile(r'shard-[0-9]{6,12}\.tar')
_SHA256 = re.compile(r'[0-9a-f]{64}')


def check_manifest(manifest: Any, folder: str) -> dict[str, Any]:
    """Return a manifest if it is one that `prepare` could have written.

    A manifest may come from another machine: its names become paths and addresses.

    Args:
        manifest: The contents of the file.
        folder: Folder or address of the file, for errors.

    Raises:
        NotPreparedError: If a part is missing, or is of another kind.
    """
    wrong = _find_fault(manifest)
    # Manifests of version 0.1 have no checksum.
    if not wrong and manifest.get('sha256', (found := seal(manifest))) != found:
        wrong = 'its SHA-256 differs'
    if wrong:
        raise NotPreparedError(
            f'{MANIFEST} of {folder} is damaged or was not written by'
            f' `explora prepare`: {wrong}. Copy it again'
        )
    return dict(manifest)


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest, leaving out the one that it holds."""
    rest = {key: value for key, value in manifest.items() if key != 'sha256'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _find_fault(manifest: Any) -> str:
    """Return what is wrong with a manifest, '' if nothing is."""
    if not isinstance(manifest, dict):
        return f'it is a {type(manifest).__name__}, expected an object'
    kinds = {'shards': list, 'index': dict, 'attributes': dict}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            return f'{key!r} is not a {kind.__name__}'
    classes = manifest.get('classes')
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    ):
        return "'classes' is not a list of names"
    if not _is_seal(manifest['index']):
        return "'index' has no size and SHA-256"
    attributes = manifest['attributes']
    for key, good in _ATTRIBUTES.items():
        if key in attributes and not good(attributes[key]):
            return f'its {key} is {str(attributes[key])[:80]!r}'
    names = set()
    for shard in manifest['shards']:
        if not isinstance(shard, dict):
            return f'{str(shard)[:80]!r} is not a shard'
        name = shard.get('name')
        if not (isinstance(name, str) and _SHARD.fullmatch(name)):
            return f'{str(name)[:80]!r} is not the name of a shard, {shard_name(0)!r}'
        if name in names:
            return f'{name} is listed twice'
        names.add(name)
        if not (_is_seal(shard) and _is_count(shard.get('samples'))):
            return f'{name} has no number of samples, size and SHA-256'
    return ''


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _is_range(value: Any) -> bool:
    """Return whether a value is (low, high), each a number or a list by band."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    if not all(isinstance(end, list) for end in value):
        return all(map(_is_number, value)) and value[0] < value[1]
    low, high = value
    return len(low) == len(high) > 0 and all(
        _is_range([*ends]) for ends in zip(low, high, strict=True)
    )


# Attributes that a manifest may hold, each with a check of its value.
_ATTRIBUTES: dict[str, Callable[[Any], bool]] = {
    'bands': lambda value: (
        value is None
        or (
            isinstance(value, list)
            and all(isinstance(band, str | int) for band in value)
        )
    ),
    'value_range': _is_range,
    'range_known': lambda value: isinstance(value, bool),
    'no_data': lambda value: value is None or isinstance(value, int | float),
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seal(known: dict[str, Any]) -> bool:
    digest = known.get('sha256')
    return (
        _is_count(known.get('bytes'))
        and isinstance(digest, str)
        and _SHA256.fullmatch(digest) is not None
    )


def read_note(path: str) -> dict[str, Any]:
    """Return the contents of a JSON file of a prepared folder.

    Raises:
        FileNotFoundError: If there is none.
        NotPreparedError: If it is damaged.
    """
    with open(path, 'rb') as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise NotPreparedError(
                f'{path} is damaged ({error}): remove it and prepare again'
            ) from error


def read_manifest(folder: str) -> dict[str, Any]:
    """Return the manifest of a prepared folder.

    Raises:
        NotPreparedError: If there is none, or if it is damaged.
    """
    try:
        return check_manifest(read_note(os.path.join(folder, MANIFEST)), folder)
    except NotPreparedError:
        raise
    except FileNotFoundError as error:
        hint = (
            'the preparation was not finished: run the same command again'
            if os.path.isdir(os.path.join(folder, PARTS))
            else 'prepare a data set into it first'
        )
        raise NotPreparedError(f'{folder} has no {MANIFEST}: {hint}') from error


def write_file(path: str, data: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    with replacing(path) as part:
        part.write_bytes(data)


def checksum(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def compare(
    files: Mapping[str, bytes], sums: Mapping[str, int], key: str, shard: str
) -> None:
    """Compare the files of a sample with their checksums.

    Args:
        files: What was read, by name.
        sums: CRC-32 of what was written, by name.
        key: Key of the sample.
        shard: Its file or address.

    Raises:
        UnreadableImageError: If a file differs or is missing.
    """
    for name, expected in sums.items():
        if name not in files or zlib.crc32(files[name]) != expected:
            raise UnreadableImageError(
                f'{name} of sample {key} in {shard} has changed: its checksum is not'
                f' {expected}. Replace the file'
            )


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Compare every byte of a prepared folder with the checksums.

    Args:
        folder: The folder.

    Returns:
        One sentence for each file that is wrong; empty if all is well.

    Raises:
        NotPreparedError: If the folder is not ready.
    """
    folder = os.fspath(folder)
    manifest = read_manifest(folder)
    files = {shard['name']: shard for shard in manifest['shards']}
    files[INDEX] = manifest['index']
    found = (find_damage(os.path.join(folder, n), e) for n, e in files.items())
    return [sentence for sentence in found if sentence]


def find_damage(path: str, expected: Mapping[str, Any]) -> str:
    """Return how a file differs from what was written, '' if it does not.

    Args:
        path: The file.
        expected: Its `bytes` and `sha256`.
    """
    if not os.path.isfile(path):
        return f'{path} is missing'
    if os.path.getsize(path) != expected['bytes']:
        return (
            f'{path} has {os.path.getsize(path)} bytes, expected'
            f' {expected["bytes"]}: it was cut short or changed'
        )
    if checksum(path) != expected['sha256']:
        return f'{path} has changed: its SHA-256 is not {expected["sha256"]}'
    return ''


# Seconds to wait for a lock: the workers of a killed process end a little later.
_PATIENCE = 5.0


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Keep other processes from preparing into a folder, which is created.

    The lock ends with the processes that hold it, however they end.

    Args:
        folder: The folder.

    Raises:
        RuntimeError: If another process, or one of its workers, is writing there.
    """
    # Only Unix has this module.
    import fcntl

    parts = os.path.join(folder, PARTS)
    os.makedirs(parts, exist_ok=True)
    with open(os.path.join(parts, 'lock'), 'w') as file:
        deadline = time.monotonic() + _PATIENCE
        # File systems without locks raise other errors; then there is no protection.
        with suppress(OSError):
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise RuntimeError(
                            f'another process is preparing into {folder}: wait until it'
                            f' ends, or pass another *output*'
                        ) from error
                    time.sleep(0.05)
        yield
