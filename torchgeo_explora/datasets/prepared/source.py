"""Files of a prepared folder, opened where they are: on disk or by fsspec."""

from typing import BinaryIO

import fsspec


def is_remote(address: str) -> bool:
    """Return whether an address names a protocol, as `https://host/fmow` does."""
    return '://' in address


def open_source(address: str) -> BinaryIO:
    """Open a file to read it from start to end. No shell and no command is involved.

    Args:
        address: A path, or an address that fsspec knows.

    Raises:
        OSError: If it cannot be opened.
        ImportError: If fsspec needs another package for the protocol.
    """
    if not is_remote(address):
        return open(address, 'rb')
    file: BinaryIO = fsspec.open(address, 'rb').open()
    return file
