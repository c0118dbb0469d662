import argparse
import errno
import pickle
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from torchgeo_explora.models.formats import files
from torchgeo_explora.models.formats.files import (
    fetch,
    hub_or_offline,
    impatient,
    read_file,
    sort_header,
)
from torchgeo_explora.terminal import escaped, printable

TENSORS = {'a': torch.arange(1000.0)}


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_arguments_of_a_training_script_are_the_only_objects_read(tmp_path, legacy):
    path = tmp_path / 'mae.pth'
    content = {'model': TENSORS, 'args': argparse.Namespace(lr=1e-3), 'epoch': 3}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_file(path)
    assert_close(found['model'], TENSORS)
    assert found['args'].lr == 1e-3


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ('code of a file was run',))


@pytest.mark.parametrize(
    ('thing', 'name'),
    [
        (torch.nn.Linear(2, 2), 'torch.nn.modules.linear.Linear'),
        (Exploit(), 'pytest|outcomes'),
        (np.float64(3.0), 'numpy'),
    ],
    ids=['module', 'exploit', 'numpy'],
)
def test_other_objects_are_refused_by_name(tmp_path, thing, name):
    path = tmp_path / 'objects.pth'
    torch.save({'model': TENSORS, 'thing': thing}, path)
    with pytest.raises(ValueError, match=rf'\(.*({name}).*\), not only tensors.*run'):
        read_file(path)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('size', [0, 5, 100, -300])
def test_damaged_files_are_refused(tmp_path, suffix, size):
    path = tmp_path / f'weights{suffix}'
    if suffix == '.pth':
        torch.save(TENSORS, path)
    else:
        save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf'weights\{suffix} is cut short or damaged'):
        read_file(path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / 'page.pth'
    path.write_text('<html>404</html>')
    with pytest.raises(ValueError, match=r'not a checkpoint.*: remove it'):
        read_file(path)
    for content in (b'abc', b'root:x:0:0\n'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'page.pth is cut short or damaged'):
            read_file(path)
    path.write_bytes(pickle.dumps(TENSORS, protocol=2))
    with pytest.raises(ValueError, match=r'page.pth'):
        read_file(path)
    torch.save(torch.ones(3), path)
    with pytest.raises(ValueError, match='holds a Tensor, expected a state dict'):
        read_file(path)


def test_folder_that_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / 'weights.pth'
    torch.save(TENSORS, path)

    def refuse(*_, **__):
        raise PermissionError('not yours')

    monkeypatch.setattr(torch, 'load', refuse)
    with pytest.raises(PermissionError, match='not yours'):
        read_file(path)


def test_failed_download_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'could not download http://127'):
        fetch('http://127.0.0.1:9/weights.pth', progress=False)
    assert not [*(tmp_path / 'checkpoints').iterdir()]


def test_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'file'))
    with pytest.raises(OSError, match=r'could not write .*weights.pth .*TORCH_HOME'):
        fetch('http://127.0.0.1:9/weights.pth', progress=False)


def test_full_disk_is_no_missing_network(tmp_path, monkeypatch):
    def fill(url, path, *_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fill)
    with pytest.raises(OSError, match=r'could not write .*No space left.*make room'):
        fetch('http://127.0.0.1:9/weights.pth', progress=False)


@pytest.mark.parametrize(
    'sign', ['\x1b', '\x07', '\r', '\n', '\x9b', '\u202e', '\ud800']
)
def test_control_characters_appear_as_escapes(sign):
    """A5: a terminal must not obey a file."""
    shown = printable(f'a{sign}[2J')
    assert shown.isprintable()
    assert shown.startswith('a\\')
    assert printable('é ü 漢', 3) == 'é ü...'


def test_lines_of_a_message_stay_and_its_control_characters_do_not():
    """A5: what a command says ends on a terminal."""
    assert escaped('a\x1b[2J\n\tb\r') == 'a\\x1b[2J\n    b\\r'


@pytest.mark.parametrize('answer', ['yes', 'late', 'refused'])
def test_hub_that_does_not_answer_is_given_up_soon(answer, monkeypatch):
    """A5: the client goes on with its cache after the patience given."""
    # Only a Hub that is late is waited for: others may answer as slowly as they do.
    patience = 0.2 if answer == 'late' else 600
    asked, late = [], threading.Event()

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            if answer == 'late':
                late.wait()
            if answer == 'refused':
                raise ConnectionError('refused')

    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub, 'get_session', Session)
    assert files.PATIENCE == 10
    monkeypatch.setattr(files, 'PATIENCE', patience)
    with hub_or_offline():
        assert constants.HF_HUB_OFFLINE is (answer != 'yes')
    late.set()
    assert constants.HF_HUB_OFFLINE is False
    assert asked == [(constants.ENDPOINT, patience)]
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with hub_or_offline():
        assert constants.HF_HUB_OFFLINE is True
    assert len(asked) == 1


@pytest.mark.parametrize('silent', ['HEAD', 'GET'])
def test_hub_that_falls_silent_is_asked_once(silent, tmp_path, monkeypatch):
    """F37: an answer to the first question does not make the client ask for minutes."""
    asked = []
    closing = threading.Event()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(('HEAD', self.path))
            if silent == 'HEAD' and self.path != '/':
                closing.wait()
                return
            self.send_response(200)
            self.send_header('X-Repo-Commit', '0' * 40)
            self.send_header('ETag', '"abc"')
            self.send_header('Content-Length', '4')
            self.end_headers()

        def do_GET(self):
            asked.append(('GET', self.path))
            closing.wait()

        def log_message(self, *_):
            pass

    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    # Only the request that is never answered ends by its limit of time.
    waits = {'HEAD': 600, 'GET': 600, silent: 0.3}
    monkeypatch.setattr(files, 'PATIENCE', 600)
    monkeypatch.setattr(constants, 'HF_HUB_ETAG_TIMEOUT', waits['HEAD'])
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', waits['GET'])
    pauses = []
    monkeypatch.setattr(time, 'sleep', pauses.append)
    with ThreadingHTTPServer(('127.0.0.1', 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = huggingface_hub.HfApi(f'http://127.0.0.1:{server.server_port}')
        before = huggingface_hub.utils._http.http_backoff
        try:
            for name in ('model.safetensors', 'model.bin'):
                with (
                    hub_or_offline(api.endpoint),
                    pytest.raises(OSError, match=r'Hub|offline|disabled'),
                ):
                    api.hf_hub_download('user/name', name, cache_dir=tmp_path)
        finally:
            closing.set()
            server.shutdown()
    assert huggingface_hub.utils._http.http_backoff is before
    assert constants.HF_HUB_OFFLINE is False
    files_asked = [kind for kind, path in asked if path != '/']
    assert files_asked.count(silent) == 2
    assert len(files_asked) <= 4
    assert len(pauses) <= 2


def test_server_that_goes_silent_is_given_up(tmp_path, monkeypatch):
    """A5: a download has a timeout, and says that no checksum is known."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(files, 'PATIENCE', 0.2)
    with socket.create_server(('127.0.0.1', 0)) as server:
        url = f'http://127.0.0.1:{server.getsockname()[1]}/weights.pth'
        with (
            pytest.warns(UserWarning, match=r'checksum of http.* is not known'),
            pytest.raises(FileNotFoundError, match='timed out'),
        ):
            fetch(url, progress=False)
    assert socket.getdefaulttimeout() is None
    with impatient():
        assert socket.getdefaulttimeout() == 0.2


def test_headers_are_sorted_and_hold_the_same(tmp_path):
    """B12: the library writes metadata in a random order."""
    path = tmp_path / 'file.safetensors'
    metadata = {name: f'"{name}\n\x1b\x7f漢' for name in ('é', 'b', 'a', 'x', 'y', 'z')}
    contents = set()
    for _ in range(5):
        save_file({'b': torch.ones(3), 'a': torch.ones(2, dtype=int)}, path, metadata)
        sort_header(path)
        contents.add(path.read_bytes())
        with safe_open(path, 'pt') as file:
            assert file.metadata() == metadata
            assert_close(file.get_tensor('b'), torch.ones(3))
    assert len(contents) == 1
