"""Files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a place to write to, which becomes *path* when the block ends well.

    The folder is made. A file that was at *path* stays whole until then; if writing
    fails, it stays for good.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be written, with what to do.
    """
    path = Path(path)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            # safetensors makes files readable by their owner alone.
            part.chmod(0o666 & ~_umask())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder, whose files move into *folder* when the block ends well.

    Each file replaces one of its name; other files of *folder* stay.

    Args:
        folder: Where the files go; it is made.

    Raises:
        OSError: If they cannot be written, with what to do.
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
    """Turn what libraries raise while writing into one kind of error."""
    try:
        yield
    # safetensors and torch have errors of their own for a full disk.
    except (OSError, SafetensorError, RuntimeError) as error:
        text = (
            f'could not write {path} ({error}): make room, or choose a place that you'
            ' may write to; what was there is unchanged'
        )
        number = getattr(error, 'errno', None)
        raise (OSError(number, text) if number else OSError(text)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
