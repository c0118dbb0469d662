"""Where checkpoints and their deltas go, and what writes them."""

import math
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import ExploraClassificationTask, ExploraDinoTask
from torchgeo_explora.tasks.run.checkpoint import (
    DeltaCheckpointIO,
    require_fit,
    require_values,
    require_whole,
)
from torchgeo_explora.writing import write_to

CONTENT = {
    'epoch': 0,
    'global_step': 1,
    'pytorch-lightning_version': '2.6.6',
    'state_dict': {'weight': torch.arange(3.0)},
    'loops': {'fit_loop': {}},
}


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
    # The bytes are the same, but for the SHA-256 that follows and its length.
    expected = by_lightning.read_bytes()
    assert path.read_bytes()[: len(expected) - 2] == expected[:-2]
    assert path.stat().st_size == len(expected) + 71
    found = io.load_checkpoint(path, weights_only=True)
    assert torch.equal(found['state_dict']['weight'], torch.arange(3.0))
    assert {file.name for file in path.parent.iterdir()} == {
        *('last.ckpt', 'last.safetensors'),
    }
    io.remove_checkpoint(path)
    assert not [*path.parent.iterdir()]


def test_failed_delta_leaves_the_last_checkpoint(tmp_path):
    """The delta is renamed first, so no checkpoint is without its delta."""
    path = tmp_path / 'last.ckpt'
    path.write_text('last')

    def full(delta):
        assert path.read_text() == 'last'
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match=rf'could not write {path}'):
        DeltaCheckpointIO(TorchCheckpointIO(), full).save_checkpoint(CONTENT, path)
    assert path.read_text() == 'last'
    assert [*tmp_path.iterdir()] == [path]


def test_names_with_dots_have_a_delta_each(tmp_path):
    io = DeltaCheckpointIO(TorchCheckpointIO(), write_delta)
    for name in ('run-v1.5', 'run-v1.7', 'a.b.ckpt'):
        io.save_checkpoint(CONTENT, tmp_path / name)
    assert {file.name for file in tmp_path.glob('*.safetensors')} == {
        *('run-v1.5.safetensors', 'run-v1.7.safetensors', 'a.b.safetensors'),
    }


@pytest.mark.parametrize('name', ['x.safetensors', 'memory://explora/x.safetensors'])
def test_checkpoint_with_the_name_of_its_delta_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    io = DeltaCheckpointIO(TorchCheckpointIO(), write_delta)
    with pytest.raises(ValueError, match=r'call the checkpoint x\.ckpt'):
        io.save_checkpoint(CONTENT, name)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('ours', [True, False])
def test_damaged_checkpoint_is_named(ours, tmp_path):
    """Ours end with their SHA-256; others have the checksums of their archive."""
    path = tmp_path / 'last.ckpt'
    content = {'state_dict': {'weight': torch.arange(300.0)}}
    io = DeltaCheckpointIO(TorchCheckpointIO(), write_delta)
    (io if ours else TorchCheckpointIO()).save_checkpoint(content, path)
    require_whole(path)
    whole = path.read_bytes()
    place = whole.find(torch.arange(300.0).numpy().tobytes()) + 400
    # Every byte of ours counts; of others, the padding between tensors does not.
    places = range(0, len(whole), 7) if ours else [place]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=f'{path} is'):
            io.load_checkpoint(path)
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f'{path} is'):
            require_whole(path)


def test_missing_or_other_delta_is_written_again(tmp_path, recwarn):
    path, delta = tmp_path / 'last.ckpt', tmp_path / 'last.safetensors'
    io = DeltaCheckpointIO(TorchCheckpointIO(), write_delta)

    def current(place):
        return place.exists() and place.read_text() == 'delta'

    for found in (None, 'of another step', 'delta'):
        delta.unlink(missing_ok=True)
        if found:
            delta.write_text(found)
        io.renew_delta(path, current)
        assert delta.read_text() == 'delta'
    delta.unlink()
    io.save_delta = lambda place: Path('/proc/none').write_text('delta')
    with pytest.warns(UserWarning, match=f'the delta of {path}'):
        io.renew_delta(path, current)


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
    assert set(io.load_checkpoint(path, weights_only=True)) == {*CONTENT}
    io.remove_checkpoint(path)
    assert not files.find('/explora/run')
    assert not [*tmp_path.iterdir()]


def test_a_place_gets_its_folder_before_the_delta(monkeypatch):
    """Other file systems than memory need it."""
    done = []
    files = type(fsspec.filesystem('memory'))

    def watch(name, own):
        def spy(self, *arguments, **options):
            done.append(name)
            return own(self, *arguments, **options)

        monkeypatch.setattr(files, name, spy)

    watch('makedirs', files.makedirs)
    watch('put_file', files.put_file)
    write_to('memory://explora/deep/run', 'delta.safetensors', write_delta)
    assert done[:2] == ['makedirs', 'put_file']
    assert fsspec.filesystem('memory').isdir('/explora/deep/run')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'explora': None}, 'not written by a task'),
        (
            {'explora': {'base': 'b', 'groups': None}},
            'was trained on base b, .* base a',
        ),
        (
            {'explora': {'base': 'a', 'groups': [['B02']]}},
            r"groups \[\['B02'\]\], .* None",
        ),
        ({'state_dict': {'x': 1}}, r"missing \['y'\], unexpected \[\]"),
        ({'state_dict': {'x': 1, 'y': 2, 'z': 3}}, r"missing \[\], unexpected \['z'\]"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(change, message):
    expected = {'base': 'a', 'groups': None}
    good = {'explora': {**expected, 'more': 1}, 'state_dict': {'x': 1, 'y': 2}}
    assert require_fit(good, expected, {'x', 'y'}) == good['explora']
    with pytest.raises(ValueError, match=message):
        require_fit({**good, **change}, expected, {'x', 'y'})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'epoch': -1}, 'has epoch -1, expected a number'),
        ({'global_step': 10**30}, 'has global_step 1000.*, expected a number'),
        ({'pytorch-lightning_version': [1]}, r'has pytorch-lightning_version \[1\]'),
        ({'state_dict': {'weight': 'x'}}, 'expected tensors by name'),
        ({'loops': {}}, 'has loops {}, expected states of loops'),
        ({'callbacks': {}}, 'it has no optimizer_states, lr_schedulers'),
        ({'explora': {'base': 'a'}}, 'expected what the task was trained on'),
        ({'layout': {'batch': 1}}, 'expected numbers of images and devices'),
        ({'hyper_parameters': 'x'}, 'expected arguments by name'),
    ],
)
def test_checkpoint_of_another_form_is_refused(change, message, tmp_path):
    """Lightning would fail with a traceback in the middle of resuming."""
    io, path = DeltaCheckpointIO(TorchCheckpointIO(), None), tmp_path / 'bad.ckpt'
    io.save_checkpoint({**CONTENT, **change}, path)
    with pytest.raises(ValueError, match=f'bad.ckpt .*{message}'):
        io.load_checkpoint(path, weights_only=True)
    io.save_checkpoint([1], path)
    with pytest.raises(ValueError, match='holds a list, expected a checkpoint'):
        io.load_checkpoint(path, weights_only=True)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (torch.zeros(2, 2), r'has x of shape \(2, 2\), this task needs \(3,\)'),
        (torch.tensor([0.0, math.nan, 0.0]), 'values in x that are not finite'),
    ],
)
def test_tensors_of_a_checkpoint_fit_and_are_finite(value, message):
    require_values({'x': torch.ones(3)}, {'x': torch.zeros(3)})
    with pytest.raises(ValueError, match=message):
        require_values({'x': value}, {'x': torch.zeros(3)})


def test_writer_in_the_background_is_refused():
    with pytest.raises(ValueError, match='AsyncCheckpointIO writes in the background'):
        DeltaCheckpointIO(AsyncCheckpointIO(TorchCheckpointIO()), write_delta)


def test_delta_goes_into_a_folder_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = 'memory://explora/end/run'
    place, size = write_to(address, 'delta.safetensors', write_delta)
    assert (place, size) == (f'{address}/delta.safetensors', 5)
    assert fsspec.filesystem('memory').cat(place) == b'delta'
    assert not [*tmp_path.iterdir()]
    place, size = write_to(str(tmp_path), 'delta.safetensors', write_delta)
    assert (place, size) == (str(tmp_path / 'delta.safetensors'), 5)


def test_linked_checkpoint_stays_whole_when_its_name_is_written_or_removed(tmp_path):
    io = DeltaCheckpointIO(TorchCheckpointIO(), write_delta)
    best, last = tmp_path / 'best.ckpt', tmp_path / 'last.ckpt'
    io.save_checkpoint(CONTENT, best)
    for change in (partial(io.save_checkpoint, {}), io.remove_checkpoint):
        last.unlink(missing_ok=True)
        last.symlink_to(best.name)
        change(last)
        assert not last.is_symlink()
        assert set(torch.load(best)) == {*CONTENT}
        assert best.with_suffix('.safetensors').exists()


def test_next_task_of_a_trainer_writes_its_own_delta(tiny, folder, tmp_path):
    trainer = Trainer(max_steps=1, logger=False, default_root_dir=tmp_path)
    trainer.strategy.checkpoint_io = DeltaCheckpointIO(TorchCheckpointIO(), write_delta)
    task = ExploraDinoTask(**tiny)
    task.trainer = trainer
    trainer.datamodule = ImageFolderDataModule(folder, batch_size=4)
    trainer.datamodule.setup('fit')
    task.setup('fit')
    io = trainer.strategy.checkpoint_io
    assert io.save_delta == task.save_delta
    assert type(io.inner) is TorchCheckpointIO
    shared = ('model', 'weights', 'image_size', 'model_args', 'rank')
    task = ExploraClassificationTask(
        **{name: tiny[name] for name in shared}, num_classes=2
    )
    task.trainer = trainer
    task.setup('fit')
    io = trainer.strategy.checkpoint_io
    assert io.save_delta is None
    assert type(io.inner) is TorchCheckpointIO
