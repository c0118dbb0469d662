"""What a run leaves behind, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from torchgeo_explora.adapt import delta_state_dict, read_delta, read_delta_metadata
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.run.ending import RunEnd

pytestmark = pytest.mark.filterwarnings('ignore')


def fit(task, place, folder, *callbacks, checkpoint=None, **arguments):
    keep = ModelCheckpoint(place, every_n_train_steps=1, save_last=True)
    trainer = Trainer(
        **{
            'accelerator': 'cpu',
            'max_steps': 3,
            'logger': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'default_root_dir': place,
            'callbacks': [*callbacks, keep],
            **arguments,
        }
    )
    trainer.fit(task, ImageFolderDataModule(folder, batch_size=4), ckpt_path=checkpoint)
    return trainer


def new(tiny, **arguments):
    seed_everything(0)
    return ExploraDinoTask(**(tiny | arguments))


class At(Callback):
    """Do something at the end of a micro-batch."""

    def __init__(self, number, what):
        self.number, self.what = number, what

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.micro_steps == self.number:
            self.what()


class Seen(Callback):
    """Record what is called at the end."""

    def __init__(self):
        self.ended = 0

    def on_train_end(self, trainer, pl_module):
        self.ended += 1


class Broken(Callback):
    """Fail at the end."""

    def on_train_end(self, trainer, pl_module):
        raise RuntimeError('no room for the picture')


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


def test_run_resumed_after_its_last_step_still_ends(tiny, folder, tmp_path, caplog):
    """A run that is killed after its last checkpoint leaves a delta when resumed."""
    fit(new(tiny), tmp_path, folder)
    delta, beside = tmp_path / 'delta.safetensors', tmp_path / 'last.safetensors'
    expected = read_delta(delta)[1]
    delta.unlink()
    beside.unlink()
    seen = Seen()
    caplog.set_level('INFO')
    last = tmp_path / 'last.ckpt'
    fit(new(tiny), tmp_path, folder, Broken(), seen, checkpoint=last)
    assert 'nothing is left to train: 3 optimizer steps are done' in caplog.text
    assert seen.ended == 1
    for path in (delta, beside):
        found = read_delta(path)[1]
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert read_delta_metadata(delta)['steps'] == '3'


def test_failing_callback_costs_no_delta(tiny, folder, tmp_path):
    with pytest.raises(RuntimeError, match='no room'):
        fit(new(tiny), tmp_path, folder, Broken())
    assert read_delta_metadata(tmp_path / 'delta.safetensors')['steps'] == '3'


def test_older_delta_beside_a_checkpoint_is_replaced(tiny, folder, tmp_path):
    """A kill between two renames leaves the delta of another step."""
    last, older = tmp_path / 'last.ckpt', []
    beside = last.with_suffix('.safetensors')
    # It comes before the checkpoint of the second step.
    keep = At(2, lambda: older.append(beside.read_bytes()))
    fit(new(tiny), tmp_path, folder, keep, max_steps=2)
    expected = read_delta(beside)[1]
    beside.unlink()  # the tensors read from it stay what they are
    beside.write_bytes(older[0])
    found = []
    look = At(3, lambda: found.append(read_delta(beside)[1]))
    fit(new(tiny), tmp_path / 'at', folder, look, checkpoint=last, max_steps=3)
    assert all(torch.equal(found[0][name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ('number', 'code', 'name'),
    [(signal.SIGTERM, 143, 'SIGTERM'), (signal.SIGINT, 130, r'Ctrl\+C')],
)
def test_signal_keeps_every_micro_batch(
    number, code, name, tiny, folder, tmp_path, caplog
):
    """The 5th micro-batch is the first of two of an optimizer step."""
    options = {'max_steps': 4, 'accumulate_grad_batches': 2}
    fit(new(tiny), tmp_path / 'whole', folder, **options)
    place = tmp_path / 'cut'
    caplog.set_level('INFO')
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ask = At(5, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SIGTERMException) as stopped:
            fit(new(tiny), place, folder, ask, **options)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert stopped.value.code == code
    last = place / 'last.ckpt'
    text = f'stopped by {name} after 2 of 4 optimizer steps'.replace('\\', '')
    assert f'{text}: to continue, repeat the command with --ckpt_path {last}' in (
        caplog.text
    )
    assert torch.load(last, weights_only=True)['explora']['micro_steps'] == 5
    assert not (place / 'delta.safetensors').exists()
    torch.manual_seed(123)  # the state of a new process
    fit(new(tiny), place, folder, checkpoint=last, **options)
    expected = weights(tmp_path / 'whole' / 'last.ckpt')
    found = weights(last)
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


def test_accumulated_gradients_are_a_mean_of_all_devices_and_a_copy():
    model = torch.nn.Linear(2, 1)
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: (tensor, reduce_op))
    trainer = SimpleNamespace(
        accumulate_grad_batches=2,
        limit_train_batches=1.0,
        strategy=strategy,
        train_dataloader=SimpleNamespace(batch_size=4),
        world_size=2,
    )
    end = RunEnd(trainer)
    model.weight.grad = torch.ones(1, 2)
    checkpoints = [{}, {}]
    end.on_train_batch_end(trainer, model, None, None, 0)
    end.on_save_checkpoint(trainer, model, checkpoints[0])
    end.on_before_optimizer_step(trainer, model, None)
    end.on_train_batch_end(trainer, model, None, None, 1)
    end.on_save_checkpoint(trainer, model, checkpoints[1])
    model.weight.grad.zero_()
    assert checkpoints[0]['accumulated'].keys() == {'weight'}
    gradient, operation = checkpoints[0]['accumulated']['weight']
    assert (gradient.tolist(), operation) == ([[1, 1]], 'mean')
    assert 'accumulated' not in checkpoints[1]


def test_changed_rate_is_used_and_said(tiny, folder, tmp_path, caplog):
    fit(new(tiny), tmp_path, folder, max_steps=2)
    caplog.set_level('INFO')
    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]['lr'])

    task = new(tiny, base_lr=0.1)
    fit(task, tmp_path, folder, Rates(), checkpoint=tmp_path / 'last.ckpt', max_steps=4)
    assert 'this run continues with 0.00625' in caplog.text
    # Two of four steps are done.
    assert rates[0] == pytest.approx((0.00625 + 1e-6) / 2, rel=1e-3)


def test_moved_base_is_found_by_its_new_name(tiny, folder, tmp_path):
    """The checkpoint's hyper-parameters must not bring the old path back."""
    base = tmp_path / 'old.pth'
    names = ('model', 'image_size')
    vit = ViT(**{name: tiny[name] for name in names}, **tiny['model_args'])
    torch.save(vit.canonical_state_dict(), base)
    fit(new(tiny, weights=str(base)), tmp_path / 'run', folder)
    last = tmp_path / 'run' / 'last.ckpt'
    again = ExploraDinoTask.load_from_checkpoint(last)
    assert again.hparams['weights'] == str(base)
    moved = base.rename(tmp_path / 'new.pth')
    content = torch.load(last, weights_only=True)
    assert 'weights' not in content['hyper_parameters']
    task = new(tiny, weights=str(moved))
    fit(task, tmp_path / 'run', folder, checkpoint=last, max_steps=4)
    again = ExploraDinoTask.load_from_checkpoint(last, weights=str(moved))
    for name, value in delta_state_dict(again.objective.student).items():
        assert value.isfinite().all(), name


SCRIPT = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer, Callback
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraDinoTask
from tests.tasks.conftest import TINY

class Tell(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            Path(sys.argv[2], 'started').touch()

if __name__ == '__main__':
    torch.manual_seed(0)
    Trainer(
        accelerator='cpu', max_steps=5000, logger=False, enable_progress_bar=False,
        default_root_dir=sys.argv[2], callbacks=[Tell()],
    ).fit(
        ExploraDinoTask(**TINY),
        ImageFolderDataModule(sys.argv[1], batch_size=4, num_workers=1),
    )
"""


@pytest.mark.cli
def test_terminated_process_and_its_workers_leave_a_checkpoint(folder, tmp_path):
    """A scheduler sends SIGTERM to the whole group, the loader's workers included."""
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(folder), str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not (tmp_path / 'started').exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 143, errors
    last = tmp_path / 'last.ckpt'
    assert f'repeat the command with --ckpt_path {last}' in errors
    assert 'Traceback' not in errors
    assert torch.load(last, weights_only=True)['global_step'] >= 2
    assert last.with_suffix('.safetensors').exists()
