"""Download, check and read weight files without running code from them."""

import argparse
import hashlib
import http.client
import json
import pickle
import re
import socket
import threading
import urllib.error
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from torchgeo_explora.terminal import printable

#: Suffixes of weight files.
SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin', '.ckpt')

#: Seconds to wait for a server.
PATIENCE = 10.0
# What the standard library raises if it cannot reach a server.
_NO_NETWORK = (urllib.error.URLError, http.client.HTTPException, ConnectionError)
# How torch names an object that it refused to unpickle.
_OBJECT = re.compile(r'Unsupported (?:global: GLOBAL|class) (\S+)')
_DAMAGED = (
    'weights file {} is cut short or damaged ({}): remove it, and copy or download it'
    ' again'
)


def read_file(path: Path) -> Mapping[str, Any]:
    """Return the content of a weight file: tensors, possibly wrapped, on the CPU.

    Pickled objects are refused, since unpickling can run code. The exception is
    `argparse.Namespace`, plain data that MAE and SatMAE store with the tensors.

    Args:
        path: A safetensors file, or a file of `torch.save`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is cut short, or holds objects other than plain data.
    """
    _check_exists(path)
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location='cpu', weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        if found := _OBJECT.search(str(error)):
            raise ValueError(
                f'weights file {path} holds Python objects ({found[1]}), not only'
                ' tensors; they are not loaded because they can run code: if you trust'
                ' the file, open it with torch.load(path, weights_only=False) and save'
                ' only its state dict'
            ) from error
        raise ValueError(_DAMAGED.format(path, 'not a checkpoint')) from error
    # If the file is not a checkpoint at all, torch's reader can raise anything.
    except Exception as error:
        raise ValueError(_DAMAGED.format(path, error or 'empty')) from error
    if not isinstance(state, Mapping):
        raise ValueError(
            f'weights file {path} holds a {type(state).__name__}, expected a state'
            ' dict: save model.state_dict() instead'
        )
    return state


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; none for a file of `torch.save`.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is cut short.
    """
    _check_exists(path)
    if path.suffix != '.safetensors':
        return {}
    try:
        with safe_open(path, 'pt') as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(_DAMAGED.format(path, error)) from error


def sort_header(path: Path) -> None:
    """Sort the names in the header of a safetensors file, in place.

    The library writes metadata in a random order; only after sorting does equal content
    give equal bytes.

    Args:
        path: A file that the library has just written.
    """
    with path.open('r+b') as file:
        size = int.from_bytes(file.read(8), 'little')
        header = file.read(size)
        content = json.loads(header)
        metadata = content.pop('__metadata__', None)
        if metadata is not None:
            # The tensors stay in the order of their data.
            content = {'__metadata__': dict(sorted(metadata.items())), **content}
        text = json.dumps(content, ensure_ascii=False, separators=(',', ':')).encode()
        if len(text) > size:
            raise ValueError(f'the header of {path} grows when it is sorted')
        file.seek(8)
        file.write(text.ljust(size))


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f'weights file {path} does not exist: give the path of a downloaded'
            f' checkpoint ({", ".join(SUFFIXES)})'
        )


def fetch_address(url: str) -> Path:
    """Return the path of the file at an address, downloading it once.

    If the name ends with the start of the file's SHA-256, as with torch.hub and FAIR,
    the download is compared with that.

    Args:
        url: Address of a weight file, http:// or https://. Anything after a question
            mark, such as a signature, is sent but is not part of the file's name.

    Raises:
        FileNotFoundError: If it is not in the cache and cannot be downloaded.
        OSError: If the cache cannot be written.
        ValueError: If the address is not that of a weight file, or the SHA-256 differs.
    """
    parts = urlsplit(url)
    name = parts.path.rpartition('/')[2]
    if parts.scheme not in ('http', 'https'):
        raise ValueError(
            f'*weights* {printable(url)} is not fetched: expected an https:// address;'
            ' download the file and give its path'
        )
    if not name.endswith(SUFFIXES):
        raise ValueError(
            f'*weights* {printable(url)} is not the address of a weight file'
            f' ({", ".join(SUFFIXES)}): download the file and give its path'
        )
    if parts.hostname == 'huggingface.co' and '/blob/' in parts.path:
        raise ValueError(
            f'*weights* {printable(url)} is the page about a file: give the address of'
            f' the file, {url.replace("/blob/", "/resolve/")}'
        )
    known = torch.hub.HASH_REGEX.search(name)
    if not known:
        # Many repositories call their file model.safetensors.
        place = f'{parts.netloc}{parts.path}'.encode()
        name = f'{hashlib.sha256(place).hexdigest()[:16]}-{name}'
    return fetch(url, known[1] if known else None, name=name)


def fetch(
    url: str,
    sha256: str | None = None,
    progress: bool = True,
    name: str | None = None,
) -> Path:
    """Return the path of a published file in torch.hub's cache, downloading it first.

    Args:
        url: Where it is published.
        sha256: Start of the expected SHA-256. None if it is unknown; a warning then
            says that the download is not checked.
        progress: Whether to show a progress bar.
        name: The file's name in the cache; the last part of the address if None.

    Raises:
        FileNotFoundError: If it is not in the cache and cannot be downloaded.
        OSError: If the cache cannot be written.
        ValueError: If its SHA-256 differs; a download is then not kept.
    """
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / (name or url.rpartition('/')[2])
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if sha256 is None:
                warn_unchecked(url)
            # Writes to a temporary file, which is renamed when it is complete.
            with impatient():
                torch.hub.download_url_to_file(url, str(path), sha256, progress)
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403):
                raise _unreachable(url, path, error) from error
            raise FileNotFoundError(
                f'{urlsplit(url).hostname} does not give {url} to everyone ({error}):'
                ' open the page of the model in a browser, log in or accept its licence'
                f' there, download the file and put it at {path}, or give its path'
            ) from error
        except (*_NO_NETWORK, TimeoutError) as error:
            raise _unreachable(url, path, error) from error
        except OSError as error:
            raise OSError(
                error.errno,
                f'could not write {path} ({error}): make room there, or set TORCH_HOME'
                ' to a folder that you may write to',
            ) from error
        except RuntimeError as error:
            raise ValueError(
                f'what {url} sends is not the published file ({error}): try again, and'
                ' do not use the file if the error persists'
            ) from error
    elif sha256 is not None and not (found := _sha256(path)).startswith(sha256):
        raise ValueError(
            f'{path} has SHA-256 {found[:12]}, the published file {sha256[:12]}: remove'
            ' it, so that it is downloaded again'
        )
    return path


def _unreachable(url: str, path: Path, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f'could not download {url} ({error}): without a network, get the file elsewhere'
        f' and put it at {path}'
    )


def warn_unchecked(url: str) -> None:
    """Warn that the checksum of a file to download is not known."""
    warnings.warn(
        f'the checksum of {url} is not known: the download is not compared with the'
        ' published file (it is read as tensors only, and cannot run code)',
        stacklevel=3,
    )


@contextmanager
def hub_or_offline(endpoint: str | None = None) -> Iterator[None]:
    """Let Hugging Face's client use its cache at once if the Hub does not answer.

    By itself, the client asks several times for each of several files, which takes
    minutes. Here the Hub is asked once whether it answers, for at most `PATIENCE`
    seconds, and the client goes offline after the first request without an answer.

    Args:
        endpoint: Address of the Hub; the client's own if None.
    """
    constants = huggingface_hub.constants
    answers: list[object] = []

    def ask() -> None:
        with suppress(Exception):
            hub = endpoint or constants.ENDPOINT
            answers.append(huggingface_hub.get_session().head(hub, timeout=PATIENCE))

    before = constants.HF_HUB_OFFLINE
    if not before:
        # Name resolution has no timeout of its own.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PATIENCE)
    try:
        constants.HF_HUB_OFFLINE = before or not answers
        with impatient(), _asked_once():
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _asked_once() -> Iterator[None]:
    """Switch Hugging Face's client offline as soon as a request gets no answer."""
    constants = huggingface_hub.constants

    @contextmanager
    def noticed() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # A refusal is an answer, too.
            if getattr(error, 'response', None) is None:
                constants.HF_HUB_OFFLINE = True
            raise

    def once(ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any, **kwargs: Any) -> Any:
            with noticed():
                return ask(*args, **{'retry_on_exceptions': (), **kwargs})

        return asked

    def once_streamed(ask: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def asked(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with ExitStack() as stack:
                with noticed():
                    response = stack.enter_context(ask(*args, **kwargs))
                yield response

        return asked

    # The client has no setting for this. A version with other names for these functions
    # retries as usual.
    wrappers = (('http_backoff', once), ('http_stream_backoff', once_streamed))
    found = [
        (module, name, getattr(module, name), wrap)
        for module in (huggingface_hub.file_download, huggingface_hub.utils._http)
        for name, wrap in wrappers
        if hasattr(module, name)
    ]
    try:
        for module, name, ask, wrap in found:
            setattr(module, name, wrap(ask))
        yield
    finally:
        for module, name, ask, _ in found:
            setattr(module, name, ask)


@contextmanager
def impatient() -> Iterator[None]:
    """Limit how long connections that are made inside wait for a server.

    The limit is for each wait, for an answer or for the next bytes, not for the whole
    download.
    """
    before = socket.getdefaulttimeout()
    if before is None:
        socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
