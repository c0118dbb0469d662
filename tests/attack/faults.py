"""Faults around a run: no disk, no permission, lost workers and connections."""

import contextlib
import ctypes
import http.server
import math
import os
import resource
import signal
import threading

import torch
from lightning.pytorch import Callback

from tests.attack import guard, whole
from tests.data.scenes import write_scene
from torchgeo_explora.adapt import read_delta_metadata
from torchgeo_explora.datamodules import ImageFolderDataModule, PreparedDataModule
from torchgeo_explora.datasets import ImageFolder, prepare
from torchgeo_explora.datasets.prepared import source
from torchgeo_explora.export import embed, map_scenes
from torchgeo_explora.models import ViT

_MS_RDONLY, _MS_REMOUNT = 1, 32


def _mount(place, size='', flags=0):
    """Mount a small file system in a namespace of this process's own.

    Raises:
        OSError: Where this process may not.
    """
    os.unshare(os.CLONE_NEWNS)
    libc = ctypes.CDLL(None, use_errno=True)
    # Nothing may reach the namespace that this one came from.
    if libc.mount(b'none', b'/', None, 1 << 18 | 1 << 14, None) or libc.mount(
        b'tmpfs', os.fsencode(place), b'tmpfs', flags, size.encode()
    ):
        raise OSError(ctypes.get_errno(), 'no small file system here')


class _At(Callback):
    """Calls a function at the end of one micro-batch."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            self.what(trainer)


class _Broken(Callback):
    def on_train_end(self, *_):
        raise RuntimeError('a callback of the user failed')


def _said(work, *arguments, **options):
    """Return what a run says when it gives up; None if it goes on."""
    try:
        work(*arguments, **options)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def full_disk(folder, images):
    """Fill the disk during a run: the last whole pair stays, and the error says so."""
    place = folder / 'small'
    place.mkdir()
    _mount(place, 'size=4m')
    filler = place / 'filler'

    def fill(trainer):
        with contextlib.suppress(OSError), filler.open('wb', buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    error = _said(whole.train, place / 'run', images, 6, _At(2, fill))
    _require(isinstance(error, OSError), f'{error!r}')
    _require('make room' in str(error), str(error))
    filler.unlink()
    _resumes(place / 'run', images, '1')


def full_disk_of_prepared_data(folder, images):
    """Fill the disk while data are prepared: the same command continues."""
    place = folder / 'small'
    place.mkdir()
    _mount(place, 'size=64k')
    error = _said(prepare, ImageFolder(images), place / 'out', samples_per_shard=8)
    _require(isinstance(error, OSError), f'{error!r}')
    _require(str(place) in str(error), str(error))
    _require(not (place / 'out/manifest.json').exists(), 'the folder looks ready')


def full_disk_of_embeddings(folder, images):
    """Fill the disk while embeddings are written: the same command continues."""
    _fill_up(folder, 'e.parquet', 16, embed, batch_size=4)


def full_disk_of_a_map(folder, images):
    """Fill the disk while a map is written: the same command continues."""
    _fill_up(folder, 'm.tif', 400, map_scenes, block=64)


def _fill_up(folder, name, room, command, **options):
    """Write with too little room (KiB), then with more; compare with a whole file."""
    place = folder / 'small'
    place.mkdir()
    scene = write_scene(folder / 'scene.tif')
    torch.manual_seed(0)
    model = ViT(whole.MODEL, image_size=32, **whole.SIZES)
    options |= {'accelerator': 'cpu', 'enable_progress_bar': False}

    def write(target):
        command(scene, target, model, None, **options)

    write(folder / name)
    _mount(place, f'size={room}k')
    error = _said(write, place / name)
    _require(isinstance(error, OSError) and 'make room' in str(error), f'{error!r}')
    _require(not (place / name).exists(), 'half a file is in the place of the output')
    _require([*place.glob('.*.parts/*')], 'nothing was kept')
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b'none', os.fsencode(place), b'tmpfs', _MS_REMOUNT, b'size=64m')
    write(place / name)
    same = (place / name).read_bytes() == (folder / name).read_bytes()
    _require(same, 'the file is another one')


def largest_file(folder, images):
    """A limit of the size of a file cuts a checkpoint short."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(trainer):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    error = _said(whole.train, folder / 'run', images, 6, _At(2, limit))
    _require(isinstance(error, OSError) and 'make room' in str(error), f'{error!r}')
    _pairs(folder / 'run')


def read_only_folder(folder, images):
    """A folder that cannot be written to is refused before the first step."""
    place = folder / 'fixed'
    place.mkdir()
    _mount(place, 'size=1m', _MS_RDONLY)
    steps = []
    error = _said(whole.train, place / 'run', images, 3, _At(1, steps.append))
    _require(isinstance(error, OSError) and str(place) in str(error), f'{error!r}')
    _require(not steps, 'it trained first')


def dying_worker(folder, images):
    """A worker that is killed ends the run with an error; the checkpoints stay."""

    order = folder / 'die'

    class Dying(ImageFolder):
        def __getitem__(self, index):
            if order.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    data = ImageFolderDataModule(os.fspath(images), batch_size=4, num_workers=1)
    setup = data.setup

    def with_dying(stage):
        setup(stage)
        data.train_dataset.__class__ = Dying

    data.setup = with_dying
    kill = _At(2, lambda trainer: order.touch())
    error = _said(whole.train, folder / 'run', images, 20, kill, data=data)
    _require(isinstance(error, RuntimeError), f'{error!r}')
    _require('worker' in str(error), str(error))
    _pairs(folder / 'run')


def failing_callback(folder, images):
    """A callback that fails at the end costs no delta."""
    error = _said(whole.train, folder / 'run', images, 2, _Broken())
    _require('of the user failed' in str(error), f'{error!r}')
    steps = read_delta_metadata(folder / 'run/delta.safetensors')['steps']
    _require(steps == '2', f'the delta is of step {steps}')
    _pairs(folder / 'run')


def loss_that_is_not_finite(folder, images):
    """NaN stops the run with the name of the term; the checkpoints are finite."""

    def spoil(trainer):
        trainer.lightning_module.objective.register_forward_hook(
            lambda module, given, terms: {k: v * math.nan for k, v in terms.items()}
        )

    error = _said(whole.train, folder / 'run', images, 6, _At(2, spoil))
    _require(error is not None and 'finite' in str(error), f'{error!r}')
    _pairs(folder / 'run')


def _train_on_dropping_stream(folder, images, often):
    """Train on a stream of a server on this machine that drops connections."""
    for split in ('train', 'val'):
        prepare(ImageFolder(images), folder / 'data' / split, samples_per_shard=8)
    counts = {}

    class Dropping(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder / 'data')

        def copyfile(self, opened, output):
            counts[self.path] = number = counts.get(self.path, 0) + 1
            if self.path.endswith('.tar') and (often or number < 3):
                output.write(opened.read(5000))
                return
            super().copyfile(opened, output)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Dropping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source._WAIT = 0.01
    data = PreparedDataModule(
        f'http://127.0.0.1:{server.server_port}', batch_size=4, stream=4
    )
    return _said(whole.train, folder / 'run', images, 4, data=data), counts


def dropped_connection(folder, images):
    """A connection that drops twice is taken up again."""
    error, counts = _train_on_dropping_stream(folder, images, often=False)
    _require(error is None, f'{error!r}')
    _require(any(number > 1 for number in counts.values()), 'nothing was dropped')
    _pairs(folder / 'run')


def lost_connection(folder, images):
    """A connection that always drops ends the run with the name of the shard."""
    error, _ = _train_on_dropping_stream(folder, images, often=True)
    _require(error is not None and 'shard-0000' in str(error), f'{error!r}')
    _require('tries' in str(error), str(error))


FAULTS = (
    full_disk,
    full_disk_of_prepared_data,
    full_disk_of_embeddings,
    full_disk_of_a_map,
    largest_file,
    read_only_folder,
    dying_worker,
    failing_callback,
    loss_that_is_not_finite,
    dropped_connection,
    lost_connection,
)


def _require(good, said):
    if not good:
        raise AssertionError(said)


def _pairs(place):
    """Check that there are checkpoints, each whole and with a whole delta."""
    found = [*place.glob('*.ckpt')]
    _require(found, 'no checkpoint is left')
    for path in found:
        state = torch.load(path, weights_only=True)['state_dict']
        _require(all(t.isfinite().all() for t in state.values()), f'{path.name}: NaN')
        read_delta_metadata(path.with_suffix('.safetensors'))


def _resumes(place, images, name):
    _pairs(place)
    whole.train(place, images, 3, checkpoint=place / f'{name}.ckpt')
    _pairs(place)


def inject(images):
    """Yield (what, outcome) of each fault, in a child of its own."""
    for fault in FAULTS:
        what = ' '.join(fault.__doc__.splitlines()[0].split())
        case = guard.Case(
            'faults',
            what,
            lambda folder: None,
            lambda folder, fault=fault: fault(folder, images),
            lambda _: True,
            watched=False,
        )
        for _, end, said in guard.run_cases([case], 1):
            good = end == 'accepted and right'
            yield what, 'as intended' if good else f'{end}: {said}'
