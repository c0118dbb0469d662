"""What a run leaves behind, however it ends."""

import os
import signal
import threading
from functools import partial
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from torchgeo_explora.tasks.run.plan import layout, require_layout

#: Seconds that a worker of a loader lives on after SIGTERM.
_GRACE = 20


class RunEnd(Callback):
    """Save the results of a run, however it ends.

    A task puts it before all other callbacks, so that none of them can fail before it:

    - At the end of training it calls the task's `finish`. A run that is resumed at or
      after its last step, and so trains nothing, ends like any other.
    - After SIGTERM, or the first Ctrl+C, training stops after the current micro-batch.
      A checkpoint is written, the way to continue is printed, and the process ends with
      code 143 or 130. `predict` and `test` stop before the next batch.
    - The trainer settings that planning changed are restored for its next run.
    - A checkpoint written between two optimizer steps holds the accumulated gradients,
      and a resumed run uses the learning rate of its own arguments.

    Python's own SIGINT handler is replaced while training runs; any other is kept.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Start with nothing trained."""
        self._given = (trainer.accumulate_grad_batches, trainer.limit_train_batches)
        self._here: dict[str, int] | None = None
        self._saved: dict[str, int] | None = None
        self._started = self._trained = self._interrupted = False
        self._stepped = self._pending = False
        self._gradients: dict[str, Any] = {}
        self._rates: list[list[float]] = []

    # Resuming -------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save gradients that no optimizer step has used yet, and the base's path.

        Lightning's command takes all hyper-parameters from a checkpoint, and these
        override what the user gives. The base's file may have moved, so its path is
        stored apart from them.
        """
        arguments = checkpoint.get('hyper_parameters', {})
        weights = arguments.get('weights')
        if isinstance(weights, str) and os.path.isfile(weights):
            checkpoint['base_weights'] = arguments.pop('weights')
        checkpoint['layout'] = self._here or layout(trainer)
        if self._pending:
            reduce = trainer.strategy.reduce
            checkpoint['accumulated'] = {
                name: reduce(parameter.grad.detach().clone(), reduce_op='mean')
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None
            }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Hold the saved gradients until training starts."""
        self._saved = checkpoint.get('layout')
        self._gradients = checkpoint.get('accumulated', {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the learning rates before those of a checkpoint replace them."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._rates = [[*getattr(each, 'base_lrs', ())] for each in schedulers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue where a resumed run stopped, with this run's learning rate."""
        self._started = True
        self._here = layout(trainer)
        if self._saved is not None:
            require_layout(self._here, self._saved)
        for config, rates in zip(
            trainer.lr_scheduler_configs, self._rates, strict=True
        ):
            _use_rates(config.scheduler, rates)
        for name, parameter in pl_module.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter.device)
        self._pending, self._gradients = bool(self._gradients), {}
        _renew_delta(trainer, pl_module)
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, partial(self._interrupt, trainer))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Note that this micro-batch is the last of its optimizer step."""
        self._stepped = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note whether gradients are waiting for an optimizer step."""
        self._trained, self._pending, self._stepped = True, not self._stepped, False

    # Stopping -------------------------------------------------------------------------

    def _interrupt(
        self, trainer: Trainer, number: int, frame: FrameType | None
    ) -> None:
        """Stop after this micro-batch; at the next Ctrl+C, at once."""
        self._interrupted = True
        # Lightning reads this after each micro-batch, and asks the other processes.
        trainer._signal_connector.received_sigterm = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # The handler may interrupt a `print`, and `print` is not reentrant.
        os.write(2, b'\nstopping after this micro-batch; Ctrl+C again stops at once\n')

    def on_predict_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop after SIGTERM, once the last batch is written."""
        stop_after_sigterm(trainer)

    def on_test_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop after SIGTERM."""
        stop_after_sigterm(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save a run that was asked to stop, and say how to continue it."""
        self.teardown(trainer, pl_module, '')
        if not isinstance(exception, SIGTERMException):
            return
        name, exception.code = (
            ('Ctrl+C', 130) if self._interrupted else ('SIGTERM', 143)
        )
        if trainer.state.fn != 'fit':
            rank_zero_info(f'stopped by {name}')
            return
        planned: Any = getattr(pl_module, 'planned_steps', 0)
        if planned and trainer.global_step >= planned:
            pl_module.finish()  # type: ignore[operator]
        place, reason = self._save(trainer)
        done = f'stopped by {name} after {trainer.global_step}'
        done += f' of {planned} optimizer steps' if planned else ' optimizer steps'
        if place is None:
            rank_zero_info(f'{done}: {reason}')
        else:
            rank_zero_info(
                f'{done}: to continue, repeat the command with --ckpt_path {place}'
            )

    def _save(self, trainer: Trainer) -> tuple[str | None, str]:
        """Return the path of a checkpoint to resume from, or None and the reason."""
        if not self._trained:
            # A resumed run has not restored everything before its first batch.
            path = trainer.ckpt_path
            return (str(path), '') if path else (None, 'nothing was trained')
        keeper: Any = trainer.checkpoint_callback
        if keeper is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None, 'no checkpoint was written: the trainer is set to write none'
        folder = getattr(keeper, 'dirpath', None) or trainer.default_root_dir
        place = getattr(keeper, 'last_model_path', '') or f'{folder}/last.ckpt'
        try:
            trainer.save_checkpoint(place)
        except OSError as error:
            return None, f'no checkpoint was written: {error}'
        return place, ''

    def _stop_listening(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        ours = getattr(getattr(handler, 'func', None), '__self__', None)
        if ours is self:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    # The end --------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files of a finished run."""
        # Still listening: Ctrl+C while other callbacks write must not end with code 1.
        pl_module.finish()  # type: ignore[operator]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that had nothing left to train."""
        if self._started:
            return
        rank_zero_info(
            f'nothing is left to train: {trainer.global_step} optimizer steps are done'
        )
        _renew_delta(trainer, pl_module)
        self.on_train_end(trainer, pl_module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            # Progress bars were never shown.
            if callback is not self and not isinstance(callback, ProgressBar):
                try:
                    callback.on_train_end(trainer, pl_module)
                # A callback that expects a start must not keep the others from ending.
                except Exception as error:  # noqa: BLE001
                    kind = type(callback).__name__
                    rank_zero_warn(f'{kind} could not end the run: {error!r}')
        pl_module.on_train_end()

    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Restore the handler of Ctrl+C, and the settings that the plan changed."""
        self._stop_listening()
        trainer.accumulate_grad_batches, trainer.limit_train_batches = self._given


def put_first(trainer: Trainer) -> None:
    """Put a new `RunEnd` before a trainer's callbacks, replacing any earlier one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [
        RunEnd(trainer),
        *(c for c in callbacks if not isinstance(c, RunEnd)),
    ]


def _renew_delta(trainer: Trainer, pl_module: Any) -> None:
    """Write the delta of the checkpoint that a run continues from, if missing."""
    io = trainer.strategy.checkpoint_io
    if trainer.ckpt_path and trainer.is_global_zero:
        io.renew_delta(trainer.ckpt_path, pl_module.is_current)  # type: ignore[attr-defined]


def stop_after_sigterm(trainer: Trainer) -> None:
    """Raise if the process was asked to stop.

    Raises:
        SIGTERMException: As Lightning's own loops do between two micro-batches.
    """
    if trainer.received_sigterm:
        raise SIGTERMException


def outlive_signals(loader: DataLoader[Any]) -> None:
    """Let the workers of a loader live until the process has saved its state.

    A scheduler sends SIGTERM to them too, and a terminal sends SIGINT. A worker that
    dies stops training in the middle of a step.

    Args:
        loader: Before it is iterated again, with new workers.
    """
    if loader.num_workers:
        # Persistent workers may have started.
        loader._iterator = None
        loader.worker_init_fn = partial(_outlive, loader.worker_init_fn)


def _outlive(initialize: Any, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGALRM ends the process if nothing else has by then.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    if initialize is not None:
        initialize(worker)


def _use_rates(scheduler: Any, rates: list[float]) -> None:
    """Set this run's learning rates in a schedule that a checkpoint restored."""
    if not isinstance(scheduler, LambdaLR):
        return
    if scheduler.base_lrs != rates:
        rank_zero_info(
            f'the checkpoint has the learning rate {max(scheduler.base_lrs):.3g}, this'
            f' run continues with {max(rates):.3g}'
        )
    scheduler.base_lrs = [*rates]
    groups = scheduler.optimizer.param_groups
    for group, rate, share in zip(groups, rates, scheduler.lr_lambdas, strict=True):
        group['initial_lr'] = rate
        # Bit for bit what the schedule gave, if nothing has changed.
        group['lr'] = rate * share(scheduler.last_epoch)
