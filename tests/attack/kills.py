"""Runs that are killed at many moments and resumed: they must end like unbroken ones.

A moment is a place in the sequence of what a run does: a hook of the trainer, or a
file that is opened, renamed, removed or made. So the moments do not depend on the
speed of the machine, and every write is met.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from lightning.pytorch import Callback

from tests.attack.whole import train
from torchgeo_explora.adapt import read_delta

STEPS = 6
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
#: Code of the process after each signal that it can hear.
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
_FILES = ('open', 'os.rename', 'os.remove', 'os.mkdir', 'os.chmod', 'os.truncate')


class Clock(Callback):
    """Counts moments, and sends this process a signal at one of them."""

    def __init__(self, place, stop=None, number=signal.SIGKILL):
        self.place, self.stop, self.number = str(place), stop, number
        self.count, self.on, self.trained = 0, True, False
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        """Count what concerns the files of the run."""
        if event in _FILES and self.on and str(arguments[0]).startswith(self.place):
            self.tick()

    def tick(self, *_, **__):
        """Count a moment."""
        self.count += 1
        if self.count == self.stop:
            os.kill(os.getpid(), self.number)

    def on_train_start(self, *_):
        self.trained = True
        self.tick()

    setup = on_fit_start = on_train_batch_start = on_train_batch_end = tick
    on_before_backward = on_after_backward = on_before_optimizer_step = tick
    on_before_zero_grad = on_train_epoch_start = on_train_epoch_end = tick
    on_train_end = on_fit_end = teardown = tick


def in_child(work, *arguments):
    """Run a function in a forked child; return its exit code, negative if killed."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            with open(os.devnull, 'w') as null:
                os.dup2(null.fileno(), 1), os.dup2(null.fileno(), 2)
            # A parent in the background ignores it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work(*arguments)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(place, images, stop=None, number=signal.SIGKILL, checkpoint=None):
    clock = Clock(place, stop, number)
    try:
        train(place, images, STEPS, clock, checkpoint=checkpoint)
    finally:
        clock.on = False
    (place.parent / 'moments').write_text(str(clock.count))


def kill_runs(images, count):
    """Yield (moment, signal, outcome) of runs that are killed and resumed.

    Args:
        images: Folder of images.
        count: Number of runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / 'run'
        assert in_child(_run, place, images) == 0
        moments = int((Path(folder) / 'moments').read_text())
        expected = _state(place)
        for index in range(count):
            shutil.rmtree(place)
            moment = 1 + index * (moments - 1) // (count - 1)
            number = SIGNALS[index % len(SIGNALS)]
            code = in_child(_run, place, images, moment, number)
            yield moment, number.name, _resume(place, images, number, code, expected)


def _resume(place, images, number, code, expected):
    """Continue a killed run; return 'as unbroken', or what is wrong."""
    # A signal in the last moments comes when nothing is left to stop.
    wanted = {-number} if number == signal.SIGKILL else {CODES[number], 0, -number}
    if code not in wanted:
        return f'the killed process ended with code {code}'
    torn = _torn(place)
    # The newest, and of two of one step the one that a user is told to take.
    found = [(_step(path), path.stem) for path in place.glob('*.ckpt')]
    checkpoint = place / f'{max(found)[1]}.ckpt' if found else None
    if in_child(_run, place, images, None, number, checkpoint):
        return 'the resumed run failed'
    state = _state(place)
    if state != expected:
        names = {*state} ^ {*expected} or {n for n in state if state[n] != expected[n]}
        return f'{sorted(names)[:5]} differ'
    # What SIGKILL leaves is removed by a run of another day.
    left = [path.name for path in place.glob('.*.part')]
    if left and number != signal.SIGKILL:
        return f'{left} are left'
    return torn or _torn(place) or 'as unbroken'


def _step(path):
    return torch.load(path, weights_only=True)['global_step']


def _torn(place):
    """Return what is wrong with the pairs of checkpoint and delta, or ''."""
    for path in place.glob('*.ckpt'):
        if not path.with_suffix('.safetensors').exists():
            return f'{path.name} has no delta'
        torch.load(path, weights_only=True)
        read_delta(path.with_suffix('.safetensors'))
    return ''


def _state(place):
    """Return the bytes that must be those of an unbroken run, by file."""
    found = {}
    for path in sorted(place.glob('*.safetensors')):
        found[path.name] = path.read_bytes()
    for path in sorted(place.glob('*.ckpt')):
        content = torch.load(path, weights_only=True)
        found[path.name] = str(content['global_step']) + repr(
            [
                (name, tensor.shape, tensor.flatten().tolist())
                for part in ('state_dict', 'optimizer_states')
                for name, tensor in _tensors(content[part])
            ]
        )
    return found


def _tensors(content, name=''):
    """Yield (name, tensor) in nested containers."""
    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors(value, f'{name}.{key}')
    elif isinstance(content, list | tuple):
        for key, value in enumerate(content):
            yield from _tensors(value, f'{name}.{key}')


def summary(runs):
    """Return the number of runs by signal and outcome."""
    return Counter((number, said) for _, number, said in runs)
