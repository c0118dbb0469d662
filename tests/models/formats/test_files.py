import argparse
import errno
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from torchgeo_explora.models.formats.files import fetch, read_file

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
    with pytest.raises(ValueError, match=rf'\(.*({name}).*\) beside tensors.*run code'):
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
