"""Files that are written completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, which becomes *path* when the block succeeds.

    The folder is created if needed. An old file at *path* is kept until then, and for
    good if writing fails.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be written; the message says what to do.
    """
    path = Path(path)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            # safetensors makes files that only their owner can read.
            part.chmod(0o666 & ~_umask())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder, whose files move to *folder* when the block succeeds.

    A file replaces an old one of the same name; other files in *folder* are kept.

    Args:
        folder: Where the files go; it is created if needed.

    Raises:
        OSError: If they cannot be written; the message says what to do.
    """
    folder = Path(folder)
    part = folder.with_name(f'.{folder.name}.{os.getpid()}.part')
    with _explained(folder):
        try:
            part.mkdir(parents=True)
            yield part
            folder.mkdir(exist_ok=True)
            for file in sorted(part.iterdir()):
                file.chmod(0o666 & ~_umask())
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors that libraries raise while writing into one kind."""
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
