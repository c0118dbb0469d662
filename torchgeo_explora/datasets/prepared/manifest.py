"""What lies in a prepared folder: shards, their sums, and where each sample is."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.writing import replacing

#: File that is written last: without it a folder is not ready.
MANIFEST = 'manifest.json'
#: Table of the samples.
INDEX = 'index.arrow'
#: Folder of what is known of finished shards, until all are.
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
    """A folder that `prepare` has not finished, or was damaged since."""


def shard_name(number: int) -> str:
    """Return the name of a shard."""
    return f'shard-{number:06}.tar'


def read_note(path: str) -> dict[str, Any]:
    """Return what a JSON file of a prepared folder holds.

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
        return read_note(os.path.join(folder, MANIFEST))
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
        key: Of the sample.
        shard: Its file or address.

    Raises:
        UnreadableImageError: If one differs, or is not there.
    """
    for name, expected in sums.items():
        if name not in files or zlib.crc32(files[name]) != expected:
            raise UnreadableImageError(
                f'{name} of sample {key} in {shard} has changed: its checksum is not'
                f' {expected}. Replace the file'
            )


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Compare every byte of a prepared folder with what was written.

    Args:
        folder: The folder.

    Returns:
        What is wrong, one sentence a file; empty if all is well.

    Raises:
        NotPreparedError: If the folder is not ready.
    """
    folder = os.fspath(folder)
    manifest = read_manifest(folder)
    files = {shard['name']: shard for shard in manifest['shards']}
    files[INDEX] = manifest['index']
    wrong = []
    for name, expected in files.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            wrong.append(f'{path} is missing')
        elif os.path.getsize(path) != expected['bytes']:
            wrong.append(
                f'{path} has {os.path.getsize(path)} bytes, expected'
                f' {expected["bytes"]}: it was cut short or changed'
            )
        elif checksum(path) != expected['sha256']:
            wrong.append(f'{path} has changed: its SHA-256 is not {expected["sha256"]}')
    return wrong


# Seconds: workers of a process that was killed end a little later than it.
_PATIENCE = 5.0


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Keep others from preparing into a folder, which is made.

    The lock ends with the processes that hold it, however they end.

    Args:
        folder: The folder.

    Raises:
        RuntimeError: If another process, or a worker of it, is at work there.
    """
    # Only Unix has it.
    import fcntl

    parts = os.path.join(folder, PARTS)
    os.makedirs(parts, exist_ok=True)
    with open(os.path.join(parts, 'lock'), 'w') as file:
        deadline = time.monotonic() + _PATIENCE
        # File systems without locks have errors of their own: nothing is known there.
        with suppress(OSError):
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise RuntimeError(
                            f'another process prepares into {folder}: wait until it'
                            f' ends, or give another *output*'
                        ) from error
                    time.sleep(0.05)
        yield
