"""Files of a prepared folder, opened where they are: on disk or through fsspec."""

import io
import time
from contextlib import suppress
from typing import Any, BinaryIO

import fsspec

# Seconds without a byte after which a connection counts as lost.
_TIMEOUT = 30.0
# How often a file is opened again after a lost connection, without any progress.
_TRIES = 5
# Seconds before the second try; they double from one try to the next.
_WAIT = 1.0


class ConnectionLostError(OSError):
    """A remote file that could not be read to its end, after several tries."""


def is_remote(address: str) -> bool:
    """Return whether an address names a protocol, as `https://host/fmow` does."""
    return '://' in address


def open_source(address: str, size: int | None = None) -> BinaryIO:
    """Open a file to read it from start to end. No shell or command is involved.

    A remote file is opened when it is read, and again if its connection was lost or
    stalled.

    Args:
        address: A path, or an address that fsspec supports.
        size: Expected size of the file in bytes; without it, an early end is not
            noticed.

    Returns:
        The file; reading a remote one raises `ConnectionLostError`, or ImportError if
        fsspec needs another package for the protocol.

    Raises:
        OSError: If a local file cannot be opened.
    """
    if not is_remote(address):
        return open(address, 'rb')
    return io.BufferedReader(_Remote(address, size), 1 << 20)


class _Remote(io.RawIOBase):
    """A remote file that is read in order, over as many connections as it takes.

    Args:
        address: Its address.
        size: Its size in bytes, if known.
    """

    def __init__(self, address: str, size: int | None) -> None:
        self.address, self.size = address, size
        self._place = 0
        self._file: Any = None

    def _open(self) -> None:
        options: dict[str, Any] = {}
        if self.address.startswith(('http://', 'https://')):
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=_TIMEOUT, sock_read=_TIMEOUT
            )
            options = {'client_kwargs': {'timeout': timeout}}
        self._file = fsspec.open(self.address, 'rb', **options).open()
        if self._place:
            self._skip(self._place)

    def _skip(self, count: int) -> None:
        if self._file.seekable():
            self._file.seek(count)
            return
        while count:
            got = len(self._file.read(min(count, 1 << 20)))
            if not got:
                raise OSError(f'it ends {count} bytes before the place to continue at')
            count -= got

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes.

        Raises:
            ConnectionLostError: If there are none after several tries.
            OSError: If there is no such file, or no permission.
            ImportError: If fsspec needs another package.
        """
        reason: BaseException | str = ''
        for number in range(_TRIES):
            if number:
                time.sleep(_WAIT * 2 ** (number - 1))
            try:
                if self._file is None:
                    self._open()
                data: bytes = self._file.read(len(buffer))
            except (FileNotFoundError, PermissionError, ImportError, ValueError):
                raise
            # Each protocol has its own errors.
            except Exception as error:  # noqa: BLE001
                reason = error
                self._drop()
                continue
            if data or not len(buffer) or self.size is None or self._place >= self.size:
                buffer[: len(data)] = data
                self._place += len(data)
                return len(data)
            reason = 'it ended'
            self._drop()
        raise ConnectionLostError(
            f'{self.address} could not be read after {self._place} bytes in {_TRIES}'
            f' tries ({str(reason) or type(reason).__name__})'
        )

    def _drop(self) -> None:
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
        self._file = None

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()
