"""A task that, stopped at any micro-batch, goes on as if it had not been."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torchgeo.tasks import BaseTask

from torchgeo_explora.tasks.resume import mix, order_by_epoch


class ResumableTask(BaseTask):
    """Data and randomness of a run as functions of its seed and its micro-step.

    A subclass keeps `micro_steps` in its checkpoints, and does what is random in a
    training step under `seeded`. The frozen base is not in a checkpoint.

    Attributes:
        micro_steps: Micro-batches that this process has trained on.
    """

    #: Set by a subclass before `super().__init__`.
    seed: int

    def __init__(self) -> None:
        """Build the models."""
        super().__init__()
        # The base is not in a checkpoint: its keys are missing by design.
        self.strict_loading = False
        self.micro_steps = 0

    @abstractmethod
    def summary(self) -> str:
        """Return what is about to run."""

    def on_train_start(self) -> None:
        """Say what runs, and take up the data where a resumed run stopped."""
        rank_zero_info(self.summary())
        loader: Any = self.trainer.train_dataloader
        if order_by_epoch(loader, self._epoch_and_batch, self.seed):
            # The position is kept here, not in the loader as Lightning expects.
            warnings.filterwarnings('ignore', "You're resuming from a checkpoint that")
        # Lightning made its iterator before the sampler and the position were known.
        fetcher: Any = self.trainer.fit_loop._data_fetcher
        iter(fetcher)

    def _epoch_and_batch(self) -> tuple[int, int]:
        """Return the epoch and the batches of it that are done."""
        batches = self.trainer.num_training_batches
        if math.isinf(batches):
            return self.trainer.current_epoch, 0
        return divmod(self.micro_steps, int(batches))

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Make what is random inside depend on (seed, rank, micro-step) alone.

        A resumed run then draws what an uninterrupted one would.
        """
        devices = [self.device] if self.device.type == 'cuda' else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(mix(self.seed, self.global_rank, self.micro_steps))
            yield
        self.micro_steps += 1
