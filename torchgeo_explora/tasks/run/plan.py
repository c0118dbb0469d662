"""How long a run is, and how many images one step of it sees."""

import math
from typing import Any

from lightning.pytorch import Trainer


def require_replicas(trainer: Trainer, frozen_dtype: str = 'float32') -> None:
    """Raise unless every device holds the whole model, its delta in float32.

    Args:
        trainer: About to fit.
        frozen_dtype: Type in which frozen weights are stored.

    Raises:
        ValueError: If the strategy shards the model, the precision casts it whole, or
            the frozen weights are stored in another type than they are used in.
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


def plan(trainer: Trainer) -> tuple[int, int]:
    """Return the optimizer steps of a run, and the images per step over all devices.

    Args:
        trainer: About to fit, with its data attached.

    Raises:
        ValueError: If the run has no end or no step, or the data give no full batch.
    """
    trainer.fit_loop.setup_data()
    loader: Any = trainer.train_dataloader
    size: int = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    if not trainer.num_training_batches:
        raise ValueError(
            f'the training set gives no full batch of {size}: use a smaller'
            ' batch_size or more images'
        )
    steps = trainer.estimated_stepping_batches
    # Without a length and max_steps, Lightning estimates -1.
    if math.isinf(steps) or steps < 0:
        raise ValueError(
            'the run has no end, and every schedule needs one: set'
            ' trainer.max_steps (or trainer.max_epochs, for data of known length)'
        )
    # Lightning estimates one epoch where there is to be none.
    if trainer.max_epochs == 0:
        steps = 0
    if steps < 1:
        raise ValueError(
            f'{int(steps)} optimizer steps are planned: set trainer.max_steps or'
            ' trainer.max_epochs to 1 or more'
        )
    return int(steps), size * trainer.accumulate_grad_batches * trainer.world_size
