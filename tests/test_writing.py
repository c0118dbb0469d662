import os
import resource
import stat

import pytest
import torch
from safetensors.torch import save_file

from torchgeo_explora.writing import _sweep, filling, replacing


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


def test_umask_of_the_process_is_never_changed(tmp_path, monkeypatch):
    """Another thread could create a file that everybody may write (A5)."""
    monkeypatch.setattr(os, 'umask', None)
    for place in (replacing(tmp_path / 'file'), filling(tmp_path / 'folder')):
        with place as part:
            (part / 'file' if part.is_dir() else part).write_text('whole')


def test_temporary_names_cannot_be_foreseen_or_taken(tmp_path, monkeypatch):
    """A link at the temporary name is not followed (A5)."""
    victim = tmp_path / 'victim'
    victim.write_text('mine')
    names = set()
    for _ in range(3):
        with replacing(tmp_path / 'file') as part:
            names.add(part.name)
            part.write_text('whole')
    assert len(names) == 3
    monkeypatch.setattr('secrets.token_hex', lambda size: 'a' * 2 * size)
    (tmp_path / f'.file.{"a" * 16}.part').symlink_to(victim)
    (tmp_path / f'.folder.{"a" * 16}.part').symlink_to(tmp_path)
    for place in (replacing(tmp_path / 'file'), filling(tmp_path / 'folder')):
        with pytest.raises(FileExistsError), place:
            pass
    assert victim.read_text() == 'mine'


def test_what_a_link_points_to_is_not_touched(tmp_path):
    """The file takes the place of the link (A5)."""
    victim, link = tmp_path / 'victim', tmp_path / 'link'
    victim.write_text('mine')
    link.symlink_to(victim)
    with replacing(link) as part:
        part.write_text('whole')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'link').symlink_to(victim)
    with filling(tmp_path / 'folder') as part:
        (part / 'link').write_text('whole')
    assert victim.read_text() == 'mine'
    for path in (link, tmp_path / 'folder' / 'link'):
        assert path.read_text() == 'whole'
        assert not path.is_symlink()


def test_devices_pipes_and_folders_are_not_replaced(tmp_path):
    """A device node or a FIFO stays what it is (A5)."""
    pipe, folder, link = (tmp_path / name for name in ('pipe', 'folder', 'link'))
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to('/dev/null')
    stream = tmp_path / 'stream'
    stream.symlink_to(f'/proc/self/fd/{os.open(tmp_path / "file", os.O_CREAT)}')
    before = {*tmp_path.iterdir()}
    for path in (pipe, link, stream, '/dev/null'):
        with pytest.raises(OSError, match='not a regular file'), replacing(path):
            raise AssertionError('must not be reached')
    with pytest.raises(IsADirectoryError, match='is a folder'), replacing(folder):
        raise AssertionError('must not be reached')
    place = filling(tmp_path)
    part = place.__enter__()
    for name in ('a', 'pipe'):
        (part / name).write_text('new')
    with pytest.raises(OSError, match='pipe is not a regular file'):
        place.__exit__(None, None, None)
    assert {*tmp_path.iterdir()} == before
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_files_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    """A power failure leaves the old file or the new one (B10)."""
    events = []
    sync, replace = os.fsync, os.replace

    def note(kind, function):
        def call(*arguments):
            events.append(kind)
            return function(*arguments)

        return call

    monkeypatch.setattr(os, 'fsync', note('sync', sync))
    monkeypatch.setattr(os, 'replace', note('rename', replace))
    with replacing(tmp_path / 'file') as part:
        part.write_text('whole')
    assert events == ['sync', 'rename', 'sync']


def test_leftovers_of_dead_runs_are_swept(tmp_path):
    """Only what has our kind of name and was not touched for a day (B10)."""
    _sweep.cache_clear()
    old = ['.a.0123456789abcdef.part', '.b.4711.part']
    young = ['.c.0123456789abcdef.part']
    others = ['film.part', '.film.part', '.a.xyz.part', 'delta.safetensors']
    for name in (*old, *young, *others):
        (tmp_path / name).write_text('half')
        if name not in young:
            os.utime(tmp_path / name, (0, 0))
    folder = tmp_path / '.model.fedcba9876543210.part'
    folder.mkdir()
    (folder / 'config.json').touch()
    os.utime(folder, (0, 0))
    with replacing(tmp_path / 'file') as part:
        part.write_text('whole')
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*young, *others, 'file'}


def test_longest_name_of_a_file_has_room(tmp_path):
    path = tmp_path / ('é' * 127)
    with replacing(path) as part:
        part.write_text('whole')
    assert path.read_text() == 'whole'
