"""Files that are written completely or not at all, even if the power fails."""

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError

# Temporary names of this version and of version 0.1, which used the process's number.
_PART = re.compile(r'\..+\.(?:[0-9a-f]{16}|[0-9]{1,8})\.part', re.DOTALL)
#: Seconds after which a temporary file is taken to belong to a run that died.
_OLD = 24 * 3600


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, which becomes *path* when the block succeeds.

    The folder is created if needed. A file already at *path* stays whole until then,
    and is kept if writing fails. A symbolic link at *path* is replaced by the file;
    what it points to is not touched. The temporary file is new and empty, and its name
    cannot be predicted.

    Args:
        path: The file to write.

    Raises:
        OSError: If it cannot be written; the message says what to do.
    """
    path = Path(path)
    with _explained(path):
        _require_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.resolve())
        part = _part(path)
        # Exclusive: neither another file nor a link is ever opened here.
        new = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(new).st_mode)  # as the umask sets it
        os.close(new)
        try:
            yield part
            # safetensors makes files that only their owner can read.
            part.chmod(mode)
            _flush(part)
            _require_file(path)
            os.replace(part, path)
            _flush_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def write_to(folder: str, name: str, write: Callable[[Path], None]) -> tuple[str, int]:
    """Write a file into a folder that may be on another machine.

    Args:
        folder: A path, or an address that fsspec knows, such as `s3://bucket/run`.
        name: The file's name.
        write: Writes the file to a local path.

    Returns:
        Where it is, and its size in bytes.
    """
    files, place = url_to_fs(folder)
    target = str(PurePosixPath(place) / name)
    if isinstance(files, LocalFileSystem):
        write(Path(target))
    else:
        put(files, write, target)
    return f'{folder.rstrip("/")}/{name}', files.size(target)


def put(files: Any, write: Callable[[Path], None], target: str) -> None:
    """Write a file on this machine, and copy it to another file system.

    Args:
        files: An fsspec file system.
        write: Writes the file to a local path.
        target: The file's path there.
    """
    with TemporaryDirectory() as folder:
        part = Path(folder) / PurePosixPath(target).name
        write(part)
        files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
        files.put_file(str(part), target)


def remove_from(folder: str, name: str) -> None:
    """Remove a file, if it is there, from a folder that may be on another machine.

    Args:
        folder: A path, or an address that fsspec knows, such as `s3://bucket/run`.
        name: The file's name.
    """
    files, place = url_to_fs(folder)
    target = str(PurePosixPath(place) / name)
    if files.exists(target):
        files.rm_file(target)


@contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder, whose files move to *folder* when the block succeeds.

    Each file replaces one of the same name; other files in *folder* stay. Nothing moves
    if something other than a file has the name of one of them.

    Args:
        folder: Where the files go; it is created if needed.

    Raises:
        OSError: If they cannot be written; the message says what to do.
    """
    folder = Path(folder)
    with _explained(folder):
        target = Path(os.path.realpath(folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        part = _part(target)
        part.mkdir()  # also exclusive
        mode = stat.S_IMODE(part.stat().st_mode) & 0o666
        try:
            yield part
            target.mkdir(exist_ok=True)
            files = sorted(part.iterdir())
            for file in files:
                _require_file(target / file.name)
            for file in files:
                file.chmod(mode)
                _flush(file)
                os.replace(file, target / file.name)
            _flush_folder(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _require_file(path: Path) -> None:
    """Raise OSError if something other than a file, or a link to one, is there."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return  # nothing is there, or only a broken link
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, f'{path.name} is a folder')
    # /dev/stdout is a link, and may lead to a file.
    stream = path.is_symlink() and str(path.readlink()).startswith('/proc/')
    if stream or not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f'{path.name} is not a regular file')


def _part(target: Path) -> Path:
    # A file name has at most 255 bytes.
    name = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f'.{name}.{secrets.token_hex(8)}.part')


@cache
def _sweep(folder: Path) -> None:
    """Remove what runs that died left in a folder, once per process.

    Only what has a temporary name as given here, belongs to this user and has not been
    changed for a day.
    """
    with suppress(OSError):
        for entry in [*os.scandir(folder)]:
            if not _PART.fullmatch(entry.name):
                continue
            found = entry.stat(follow_symlinks=False)
            mine = not hasattr(os, 'getuid') or found.st_uid == os.getuid()
            if not mine or time.time() - found.st_mtime < _OLD:
                continue
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif stat.S_ISREG(found.st_mode):
                Path(entry.path).unlink(missing_ok=True)


def _flush(file: Path) -> None:
    """Wait until a file is on the disk."""
    place = os.open(file, os.O_RDWR)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, if the system supports it."""
    with suppress(OSError):
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the various errors that libraries raise while writing into OSError."""
    try:
        yield
    # safetensors and torch raise their own errors if the disk is full.
    except (OSError, SafetensorError, RuntimeError) as error:
        text = (
            f'could not write {path} ({error}): make room, or choose a place that you'
            ' may write to; an old file there is unchanged'
        )
        number = getattr(error, 'errno', None)
        raise (OSError(number, text) if number else OSError(text)) from error
