"""Checkpoints on a disk that is full."""

from pathlib import Path

import pytest

from torchgeo_explora.tasks.checkpoint import DeltaCheckpointIO


class Full:
    """What writes checkpoints, out of room."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        Path(path).write_text('half')
        raise OSError(28, 'No space left on device')


def test_full_disk_leaves_the_last_checkpoint_and_its_delta(tmp_path):
    path, deltas = tmp_path / 'last.ckpt', []
    path.write_text('last')
    with pytest.raises(OSError, match=rf'could not write {path} \(.*make room'):
        DeltaCheckpointIO(Full(), deltas.append).save_checkpoint({}, path)
    assert path.read_text() == 'last'
    assert [*tmp_path.iterdir()] == [path]
    assert not deltas
