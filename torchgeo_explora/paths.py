"""Paths that a user gives."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> str:
    """Return a path with `~` and environment variables replaced.

    Relative paths stay relative to the working directory, and addresses such as
    `s3://bucket/name` are left unchanged.
    """
    return os.path.expanduser(os.path.expandvars(os.fspath(path)))


def local_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Return a path as `expanded` does, and raise unless it is on this machine.

    Args:
        name: Name of the argument, for the error.
        path: A file or a folder.

    Raises:
        ValueError: If it is an address, such as `s3://bucket/name`.
    """
    place = expanded(path)
    if '://' in place:
        raise ValueError(
            f'*{name}* {place} is on another machine: give a path on this one, and copy'
            ' the result'
        )
    return Path(place)


def require_writable(folder: str | os.PathLike[str]) -> Path:
    """Create a folder if needed, and raise unless files can be written into it.

    Args:
        folder: A folder on this machine.

    Raises:
        OSError: If it cannot be created or written to.
    """
    folder = Path(folder)
    advice = 'choose another folder, or allow writing there'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f'the folder {folder} cannot be created ({error}): {advice}'
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f'the folder {folder} cannot be written to: {advice}')
    return folder
