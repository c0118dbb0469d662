"""A task that continues after any micro-batch as if it had not been stopped."""

import math
import os
import random
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler
from torchgeo.tasks import BaseTask

from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.paths import require_writable
from torchgeo_explora.tasks.run.checkpoint import (
    DeltaCheckpointIO,
    require_whole,
    without_delta,
)
from torchgeo_explora.tasks.run.ending import outlive_signals, put_first
from torchgeo_explora.tasks.run.options import TaskOptions
from torchgeo_explora.tasks.run.precision import advise_precision
from torchgeo_explora.tasks.run.raw_images import (
    RawImages,
    require_predict_set,
    take_over_normalization,
)
from torchgeo_explora.terminal import printable


class ResumableTask(BaseTask):
    """A task around a backbone, with raw images and runs that resume exactly.

    The data and the randomness of a run depend only on its seed and its micro-step. A
    subclass stores `micro_steps` in its checkpoints, and runs the random parts of a
    training step under `seeded`. Checkpoints leave out the frozen base.

    The data module's own normalisation and augmentation are switched off: the task gets
    raw sensor values, maps them to [0, 1] and normalises them as in the base's
    training.

    Args:
        options: Where the task starts, and how it sees images.

    Attributes:
        micro_steps: Micro-batches that this process has trained on.
        raw_images: Maps raw images to [0, 1]; set by `setup`.
    """

    #: The backbone that reads the images.
    backbone: Backbone
    raw_images: Any

    def __init__(self, options: TaskOptions) -> None:
        """Keep the options; the models are built from them."""
        # First, since `BaseTask` calls `configure_models`.
        self.options = options
        super().__init__()
        # Lightning has collected only the arguments that were given; these are all of
        # them.
        self.save_hyperparameters(options.plain())
        # Checkpoints leave out the base: its keys are missing by design.
        self.strict_loading = False
        self.raw_images = None
        self.micro_steps = 0

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return a task with the arguments and the state that a checkpoint holds.

        Raises:
            ValueError: If the file is damaged, or its arguments are those of an earlier
                version.
        """
        if isinstance(checkpoint_path, str | PathLike):
            path = os.fspath(checkpoint_path)
            require_whole(path)
            if 'weights' not in kwargs and os.path.isfile(path):
                content = torch.load(path, 'cpu', weights_only=True, mmap=True)
                if 'base_weights' in content:
                    kwargs['weights'] = _local(content['base_weights'], path)
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f'{checkpoint_path} holds arguments that {cls.__name__} does not take'
                f' ({error}): if torchgeo-explora 0.1 wrote it, read it with that'
                ' version, or build the task again and load the weights with'
                ' trainer.fit(..., ckpt_path=...) or load_delta'
            ) from error

    def setup(self, stage: str) -> None:
        """Switch off the data module's normalisation, and find the bands it gives."""
        datamodule = getattr(self.trainer, 'datamodule', None)
        if stage == 'predict':
            require_predict_set(datamodule)
        raw_images = RawImages(self.backbone, datamodule, self.options.value_range)
        self.raw_images = raw_images.to(self.device)
        take_over_normalization(datamodule)
        put_first(self.trainer)
        # A trainer's last task may have been another one, with its own delta.
        strategy = self.trainer.strategy
        strategy.checkpoint_io = DeltaCheckpointIO(
            without_delta(strategy.checkpoint_io), self.delta_writer()
        )
        folder = self.trainer.default_root_dir
        if stage == 'fit' and self.trainer.is_global_zero and '://' not in folder:
            require_writable(folder)
        if stage == 'fit':
            # 0, unless a trainer continues its own run; a checkpoint sets its own
            # count.
            progress = self.trainer.fit_loop.epoch_loop.batch_progress
            self.micro_steps = progress.total.ready
            # A frozen backbone, or a teacher, is in eval mode by design.
            warnings.filterwarnings('ignore', r'Found \d+ module\(s\) in eval mode')

    def delta_writer(self) -> Callable[[Path], None] | None:
        """Return a function that writes a checkpoint's delta; None without a delta."""
        return None

    def is_current(self, path: Path) -> bool:
        """Return whether a file is the one that `delta_writer` would write now."""
        return True

    def finish(self) -> None:
        """Write the files of a finished run; by default none."""

    def unit_image(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images of a batch in [0, 1], (B, C, H, W), or series of them."""
        image: Tensor = self.raw_images(batch['image'])
        return image

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and call `after_optimizer_step` unless the step was skipped."""
        # For float16; its scale falls when infinite gradients make it skip a step.
        scaler = getattr(self.trainer.precision_plugin, 'scaler', None)
        scale = scaler and scaler.get_scale()
        super().optimizer_step(*args, **kwargs)
        if not scaler or scaler.get_scale() >= scale:
            self.after_optimizer_step()

    def after_optimizer_step(self) -> None:
        """Update what has no gradient, after an optimizer step that was not skipped.

        Lightning counts the step later.
        """

    @abstractmethod
    def summary(self) -> str:
        """Describe the run that is about to start."""

    def on_train_start(self) -> None:
        """Print the summary, and continue with the data where a resumed run stopped."""
        rank_zero_info(self.summary())
        advise_precision(self.trainer)
        loader: Any = self.trainer.train_dataloader
        if order_by_epoch(loader, self._epoch_and_batch, self.options.seed):
            # The position is kept here, not in the loader as Lightning expects.
            warnings.filterwarnings('ignore', "You're resuming from a checkpoint that")
        outlive_signals(loader)
        # Lightning made its iterator before the sampler and the position were known.
        fetcher: Any = self.trainer.fit_loop._data_fetcher
        iter(fetcher)

    def _epoch_and_batch(self) -> tuple[int, int]:
        """Return the epoch and the number of its batches that are done."""
        batches = self.trainer.num_training_batches
        if math.isinf(batches):
            return self.trainer.current_epoch, 0
        return divmod(self.micro_steps, int(batches))

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Make everything random inside depend only on (seed, rank, micro-step).

        A resumed run then draws what an uninterrupted one would.
        """
        devices = [self.device] if self.device.type == 'cuda' else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(
                mix(self.options.seed, self.global_rank, self.micro_steps)
            )
            yield
        self.micro_steps += 1


class ResumableOrder(Sampler[Any]):
    """A sampler's order as a function of seed and epoch, from where a run stopped.

    Args:
        sampler: Sampler of one epoch.
        position: Returns (epoch, number of its samples already used).
        seed: Seed of all epochs.
    """

    def __init__(
        self, sampler: Sampler[Any], position: Callable[[], tuple[int, int]], seed: int
    ) -> None:
        """Wrap *sampler*."""
        self.sampler = sampler
        self.position = position
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
        """Yield what is left of the epoch."""
        epoch, used = self.position()
        seed = mix(self.seed, epoch)
        _seed_own_generator(self.sampler, seed)
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            order = list(self.sampler)
        return iter(order[used:])

    def __len__(self) -> int:
        """Return the number of samples in a whole epoch."""
        return len(self.sampler)  # type: ignore[arg-type]


def order_by_epoch(
    loader: DataLoader[Any], batches_done: Callable[[], tuple[int, int]], seed: int
) -> bool:
    """Make the order of *loader* resumable, in place.

    Args:
        loader: Loader whose batch sampler draws from a sampler.
        batches_done: Returns (epoch, number of its batches already used).
        seed: Seed of the order.

    Returns:
        False if there is no sampler to control (iterable data, own batch sampler).
    """
    # For iterable data torch's own sampler is endless.
    if isinstance(loader.dataset, IterableDataset):
        return False
    batches = loader.batch_sampler
    sampler = getattr(batches, 'sampler', None)
    if sampler is None:
        return False
    size = batches.batch_size  # type: ignore[union-attr]

    def position() -> tuple[int, int]:
        epoch, done = batches_done()
        return epoch, done * size

    # `DataLoader` does not accept another batch sampler once it is built, but reads the
    # one that it has at every epoch.
    batches.sampler = ResumableOrder(sampler, position, seed)  # type: ignore[union-attr]
    return True


def _seed_own_generator(sampler: Any, seed: int) -> None:
    """Seed the NumPy generator that TorchGeo's random samplers hold."""
    # In a distributed run Lightning wraps such a sampler as a data set.
    sampler = getattr(getattr(sampler, 'dataset', None), '_sampler', sampler)
    if isinstance(getattr(sampler, 'generator', None), np.random.Generator):
        sampler.generator = np.random.default_rng(seed)


def mix(*values: int) -> int:
    """Return one 63-bit seed that depends on all of several small integers."""
    seed = 0
    for value in values:
        # The odd multiplier and the shift of splitmix64 spread neighbouring integers.
        seed = ((seed ^ value) * 0x9E3779B97F4A7C15 + 0xBF58476D1CE4E5B9) % 2**64
        seed ^= seed >> 31
    return seed >> 1


def generator_states() -> dict[str, Any]:
    """Return the states of all global generators, as values that load safely."""
    kind, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        'python': random.getstate(),
        'numpy': [kind, keys.tolist(), *rest],
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state_all()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Set all global generators to what `generator_states` returned."""
    version, keys, gauss = states['python']
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = states['numpy']
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    cuda = states.get('cuda', [])
    # With another number of devices it is another run: its generators start afresh.
    if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in cuda])


def _local(weights: Any, path: str) -> Any:
    """Return the weights that a checkpoint names, unless they are at an address."""
    if isinstance(weights, str) and '://' in weights:
        raise ValueError(
            f'{path} was trained on the weights at {printable(weights)}, but a file may'
            ' not start a download: pass *weights* yourself'
        )
    return weights
