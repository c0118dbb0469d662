"""How long a run is, and how many images one step of it sees."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info


def require_replicas(trainer: Trainer, frozen_dtype: str = 'float32') -> None:
    """Raise unless every device holds the whole model, with its delta in float32.

    Args:
        trainer: A trainer about to fit.
        frozen_dtype: Type in which frozen weights are stored.

    Raises:
        ValueError: If the strategy shards the model, the precision casts all of it, or
            the frozen weights would be stored in another type than they are used in.
    """
    strategy = type(trainer.strategy).__name__
    if strategy.startswith(('FSDP', 'DeepSpeed', 'ModelParallel')):
        raise ValueError(
            f'{strategy} shards the model, and student and teacher share its frozen'
            ' tensors: use trainer.strategy=ddp'
        )
    if str(trainer.precision).endswith('-true') and trainer.precision != '32-true':
        raise ValueError(
            f'precision {trainer.precision} would keep the trained weights in half'
            ' precision, where small steps vanish: use bf16-mixed'
        )
    if frozen_dtype == 'bfloat16' and trainer.precision != 'bf16-mixed':
        raise ValueError(
            f'*frozen_dtype* bfloat16 rounds weights that precision {trainer.precision}'
            ' uses as they are: set trainer.precision=bf16-mixed, or float32 here'
        )


#: Lightning's callbacks that contradict a plan, and what to do instead.
_CONTRADICT = {
    'GradientAccumulationScheduler': (
        'changes the images per optimizer step during a run, but rate and schedule are'
        ' planned for a fixed number: set trainer.accumulate_grad_batches'
    ),
    'BatchSizeFinder': (
        'changes the batch size after the run is planned: find it with'
        ' lightning.pytorch.tuner.Tuner, then set batch_size'
    ),
    'LearningRateFinder': (
        'sets a rate that the schedule does not use: set *base_lr* instead'
    ),
    'WeightAveraging': (
        'keeps an average of all weights, and its checkpoints cannot be resumed:'
        ' remove it (in D-ExPLoRA the teacher is such an average already)'
    ),
}


def require_steady(trainer: Trainer) -> None:
    """Raise if a callback contradicts what is planned for a run.

    Args:
        trainer: A trainer about to fit.

    Raises:
        ValueError: If there is one; the error says what to do instead.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind in type(callback).__mro__:
            # Lightning's tuner tries batch sizes on runs that end early.
            trial = kind.__name__ == 'BatchSizeFinder' and callback._early_exit
            if kind.__name__ in _CONTRADICT and not trial:
                raise ValueError(
                    f'{type(callback).__name__} {_CONTRADICT[kind.__name__]}'
                )


def plan(trainer: Trainer) -> tuple[int, int]:
    """Return the optimizer steps of a run, and the images per step over all devices.

    Every step gets the same number of batches: if an epoch is not a whole number of
    steps, its last batches are left out, and if it is shorter than one step, fewer
    batches are accumulated. A message reports either case.

    Args:
        trainer: A trainer about to fit, with its data attached.

    Raises:
        ValueError: If the run has no end or no step, the data give no full batch, or a
            callback contradicts the plan.
    """
    require_steady(trainer)
    if trainer.limit_train_batches == 0:
        raise ValueError(
            'trainer.limit_train_batches is 0, which leaves no batch to train on: set'
            ' it to 1 or more, or leave it out'
        )
    trainer.fit_loop.setup_data()
    size = batch_size(trainer)
    if not trainer.num_training_batches:
        raise ValueError(
            f'the training set gives no full batch of {size}: use a smaller'
            ' batch_size or more images'
        )
    _fill_steps(trainer)
    steps = trainer.estimated_stepping_batches
    # With neither a known length nor max_steps, Lightning estimates -1.
    if math.isinf(steps) or steps < 0:
        raise ValueError(
            'the run has no end, and every schedule needs one: set'
            ' trainer.max_steps (or trainer.max_epochs, for data of known length)'
        )
    # Lightning estimates one epoch even if max_epochs is 0.
    if trainer.max_epochs == 0:
        steps = 0
    if steps < 1:
        raise ValueError(
            f'{int(steps)} optimizer steps are planned: set trainer.max_steps or'
            ' trainer.max_epochs to 1 or more'
        )
    return int(steps), size * trainer.accumulate_grad_batches * trainer.world_size


def batch_size(trainer: Trainer) -> int:
    """Return the number of images in a batch on one device; 1 if it is not known."""
    loader: Any = trainer.train_dataloader
    size = getattr(loader, 'batch_size', None)
    inner = getattr(loader, 'batch_sampler', None)
    return int(size or getattr(inner, 'batch_size', None) or 1)


def _fill_steps(trainer: Trainer) -> None:
    """Make an epoch a whole number of optimizer steps.

    Otherwise Lightning ends an epoch with a step over the batches that are left, but
    divides their gradients by the full number.
    """
    batches, wanted = trainer.num_training_batches, trainer.accumulate_grad_batches
    if math.isinf(batches):
        return
    if batches < wanted:
        trainer.accumulate_grad_batches = int(batches)
        rank_zero_info(
            f'an epoch has {batches} batches, so {batches} are accumulated for an'
            f' optimizer step, not {wanted}: use a smaller batch_size or more images to'
            ' have more images per step'
        )
    elif rest := batches % wanted:
        rank_zero_info(
            f'an epoch has {batches} batches, and {wanted} are accumulated for an'
            f' optimizer step: the last {rest} of each epoch are left out'
        )
        trainer.limit_train_batches = int(batches - rest)
        loop = trainer.fit_loop
        loop._data_fetcher.teardown()  # type: ignore[union-attr]
        loop._combined_loader = None
        loop.setup_data()


def layout(trainer: Trainer) -> dict[str, int]:
    """Return how a running fit spreads its images, as stored in a checkpoint."""
    return {
        'batch': batch_size(trainer) * trainer.world_size,
        'accumulated': trainer.accumulate_grad_batches,
        'devices': trainer.world_size,
    }


def require_layout(here: Mapping[str, int], saved: Mapping[str, int]) -> None:
    """Raise if a resumed run would lose its place in the data, and its plan.

    Args:
        here: `layout` of this run.
        saved: What `layout` returned when the checkpoint was written.

    Raises:
        ValueError: If the batch size over all devices, or the number of batches
            accumulated, differs.
    """
    if any(here[name] != saved[name] for name in ('batch', 'accumulated')):
        raise ValueError(
            f'the checkpoint was written with {saved["batch"]} images in a batch over'
            f' {saved["devices"]} devices and {saved["accumulated"]} batches'
            f' accumulated, this run has {here["batch"]} over {here["devices"]} and'
            f' {here["accumulated"]}: give batch_size, devices and'
            ' accumulate_grad_batches that match, or start a new run'
        )
    if here['devices'] != saved['devices']:
        rank_zero_info(
            f'the checkpoint was written on {saved["devices"]} devices, this run has'
            f' {here["devices"]}: a step sees the same images, but crops and masks are'
            ' drawn differently'
        )
