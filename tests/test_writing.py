import os
import resource
import stat

import pytest
import torch
from safetensors.torch import save_file

from torchgeo_explora.writing import filling, replacing


def test_file_appears_with_its_folder_and_usual_rights(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    with replacing(path) as part:
        part.write_text('whole')
        part.chmod(0o600)
        assert not path.exists()
    assert path.read_text() == 'whole'
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize('write', [torch.save, lambda t, path: save_file(t, path)])
def test_full_disk_is_one_kind_of_error_and_leaves_the_last_file(write, tmp_path):
    path = tmp_path / 'file'
    path.write_text('last')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with (
            pytest.raises(OSError, match=rf'could not write {path} \(.*make room'),
            replacing(path) as part,
        ):
            write({'a': torch.ones(100_000)}, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == 'last'
    assert [*tmp_path.iterdir()] == [path]


def fail(place, error):
    """Write half of a file, then fail."""
    with place as part:
        (part / 'config.json' if part.is_dir() else part).write_text('half')
        raise error


def test_missing_rights_keep_their_kind(tmp_path):
    with pytest.raises(PermissionError, match='make room, or choose a place'):
        fail(replacing(tmp_path / 'file'), PermissionError(13, 'Permission denied'))


def test_other_errors_pass(tmp_path):
    with pytest.raises(ValueError, match=r'^mine$'):
        fail(replacing(tmp_path / 'file'), ValueError('mine'))
    assert not [*tmp_path.iterdir()]


def test_folder_is_filled_beside_what_is_there(tmp_path):
    folder = tmp_path / 'model'
    folder.mkdir()
    (folder / 'notes.txt').write_text('mine')
    (folder / 'config.json').write_text('old')
    with filling(folder) as part:
        (part / 'config.json').write_text('new')
        (part / 'config.json').chmod(0o600)
        assert (folder / 'config.json').read_text() == 'old'
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        'notes.txt': 'mine',
        'config.json': 'new',
    }
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((folder / 'config.json').stat().st_mode) == 0o666 & ~mask
    assert [*tmp_path.iterdir()] == [folder]


def test_folder_that_fails_stays_as_it_was(tmp_path):
    folder = tmp_path / 'deep' / 'model'
    with pytest.raises(OSError, match=r'disk full.*make room'):
        fail(filling(folder), OSError('disk full'))
    assert not [*folder.parent.iterdir()]
