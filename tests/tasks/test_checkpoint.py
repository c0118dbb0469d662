"""Where checkpoints and their deltas go, and what writes them."""

from pathlib import Path

import fsspec
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from torchgeo_explora.tasks.checkpoint import DeltaCheckpointIO

CONTENT = {'state_dict': {'weight': torch.arange(3.0)}}


class Full:
    """What writes checkpoints, out of room."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        Path(path).write_text('half')
        raise OSError(28, 'No space left on device')


class Own(TorchCheckpointIO):
    """What a user may have put in place of the default."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint({**checkpoint, 'own': storage_options}, path)


def write_delta(path):
    Path(path).write_text('delta')


def test_full_disk_leaves_the_last_checkpoint_and_its_delta(tmp_path):
    path, deltas = tmp_path / 'last.ckpt', []
    path.write_text('last')
    with pytest.raises(OSError, match=rf'could not write {path} \(.*make room'):
        DeltaCheckpointIO(Full(), deltas.append).save_checkpoint({}, path)
    assert path.read_text() == 'last'
    assert [*tmp_path.iterdir()] == [path]
    assert not deltas


def test_lightnings_default_is_not_asked_to_copy_a_local_file(tmp_path, monkeypatch):
    by_lightning, path = tmp_path / 'lightning.ckpt', tmp_path / 'new' / 'last.ckpt'
    TorchCheckpointIO().save_checkpoint(CONTENT, by_lightning)
    monkeypatch.setattr(TorchCheckpointIO, 'save_checkpoint', None)
    io = DeltaCheckpointIO(TorchCheckpointIO(), write_delta)
    io.save_checkpoint(CONTENT, str(path))
    # Not a byte is another one.
    assert path.read_bytes() == by_lightning.read_bytes()
    found = io.load_checkpoint(path, weights_only=True)
    assert torch.equal(found['state_dict']['weight'], torch.arange(3.0))
    assert {file.name for file in path.parent.iterdir()} == {
        *('last.ckpt', 'last.safetensors'),
    }
    io.remove_checkpoint(path)
    assert not [*path.parent.iterdir()]


def test_another_writer_keeps_its_way(tmp_path):
    path = tmp_path / 'last.ckpt'
    io = DeltaCheckpointIO(Own(), write_delta)
    io.save_checkpoint(CONTENT, f'file://{path}', {'speed': 2})
    assert torch.load(path)['own'] == {'speed': 2}
    assert path.with_suffix('.safetensors').read_text() == 'delta'
    # What the default cannot do, it says itself.
    with pytest.raises(TypeError, match='storage_options'):
        DeltaCheckpointIO(TorchCheckpointIO(), write_delta).save_checkpoint(
            CONTENT, path, {'speed': 2}
        )


def test_another_place_gets_checkpoint_and_delta(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, files = 'memory://explora/run/last.ckpt', fsspec.filesystem('memory')
    io = DeltaCheckpointIO(TorchCheckpointIO(), write_delta)
    io.save_checkpoint(CONTENT, path)
    assert files.cat('/explora/run/last.safetensors') == b'delta'
    assert set(io.load_checkpoint(path, weights_only=True)) == {'state_dict'}
    io.remove_checkpoint(path)
    assert not files.find('/explora/run')
    assert not [*tmp_path.iterdir()]
