"""Downloads of published data sets, which are complete or absent."""

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple
from urllib.error import URLError

from torchgeo.datasets.utils import download_url, extract_archive, which

# Smallest share of the published size that an archive may have. Publishers round, and
# some servers pack a folder again for each download.
_LEAST = 0.95


class Archive(NamedTuple):
    """A published .tar.gz: folder that it contains, address, size in bytes."""

    folder: str
    url: str
    size: int


def fetch_archive(archive: Archive, root: str) -> str:
    """Download an archive and unpack it.

    An archive that is in *root* already, as `<folder>.tar.gz`, is not downloaded again.
    Its size is compared with the published one. It is removed once it is unpacked.

    Args:
        archive: What to fetch.
        root: Parent of the new folder.

    Returns:
        The folder, which exists only when it is complete.

    Raises:
        RuntimeError: If the server does not answer, the archive is cut short or
            damaged, or the folder exists already.
    """
    folder = os.path.join(root, archive.folder)
    path, part = f'{folder}.tar.gz', f'{folder}.part'
    if os.path.exists(folder):
        raise RuntimeError(
            f'{folder} is incomplete: move it away, so that *download* can replace it'
        )
    try:
        # TorchGeo would expand a relative path that starts with ~.
        download_url(archive.url, os.path.abspath(root), os.path.basename(path))
    except URLError as error:
        raise RuntimeError(
            f'{archive.url} does not answer ({error}): try again later, or put the'
            f' archive at {path} yourself'
        ) from error
    found = os.path.getsize(path)
    if found < _LEAST * archive.size:
        raise RuntimeError(
            f'{path} has {found} bytes, expected about {archive.size}: it was cut'
            f' short. Remove it and try again'
        )
    shutil.rmtree(part, ignore_errors=True)
    try:
        extract_archive(path, part)
        # Some archives contain the folder, others only its contents.
        inner = os.path.join(part, archive.folder)
        os.rename(inner if os.path.isdir(inner) else part, folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise RuntimeError(
            f'{path} is damaged ({error}). Remove it and try again'
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    os.remove(path)
    return folder


def fetch_bucket(url: str, folder: str, patterns: Sequence[str]) -> None:
    """Download a folder from Amazon S3 with the command `aws`.

    An interrupted download is continued.

    Args:
        url: The address, `s3://bucket/folder`.
        folder: Where the files go; it exists only when it is complete.
        patterns: Names of the files, such as '*.jpg'.

    Raises:
        DependencyNotFoundError: If the command is not installed.
        CalledProcessError: If it fails.
    """
    aws = which('aws')
    wanted = [word for pattern in patterns for word in ('--include', pattern)]
    options = ('--no-sign-request', '--exclude', '*', *wanted)
    aws('s3', 'sync', *options, url, f'{folder}.part')
    os.rename(f'{folder}.part', folder)
