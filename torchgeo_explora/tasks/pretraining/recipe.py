"""Settings of D-ExPLoRA that go together: the paper's, and those for few images."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from peft import LoraConfig, PeftConfig

from torchgeo_explora.objectives import DINOv2Options

#: 'paper' has the paper's settings; 'short' is for few images; 'auto' takes 'short' for
#: runs of fewer than `SHORT_RUN` optimizer steps, and 'paper' for others.
type Recipe = Literal['auto', 'short', 'paper']
RECIPES = ('auto', 'short', 'paper')

SHORT_RUN = 2000
#: Steps of a run whose length is not given, unless one pass over the images is longer.
FEWEST_STEPS = 400
#: Lightning's number of epochs if neither steps nor epochs are given.
UNLIMITED_EPOCHS = 1000
BASE_LR = 1e-3
#: Of the ViT-Ti for which the short recipe's rate was tuned.
TUNED_WIDTH = 192
#: A new head teaches little while its targets are nearly uniform. Measured with a
#: ViT-Ti on EuroSAT only.
_SHORT: dict[str, Any] = {
    'prototypes': 512,
    'hidden_dim': 512,
    'bottleneck_dim': 64,
    'whiten_head': True,
    'teacher_temperature': (0.02, 0.03),
}


def short_adapter(pretraining: Mapping[str, Any]) -> PeftConfig | None:
    """Return LoRA on all matrices, unless an adapter was described.

    For a ViT-L it has 27 M parameters, 9 % of the model; on queries and values, 6 M.

    Args:
        pretraining: Arguments of a task.
    """
    if any(pretraining.get(name) is not None for name in ('adapter', 'rank', 'alpha')):
        return None
    return LoraConfig(r=64, lora_alpha=256, target_modules='all-linear')


def planned_length(
    steps_of_epoch: float, min_epochs: int = 0, min_steps: int = 0
) -> int:
    """Return the optimizer steps of a run whose length is not given.

    Args:
        steps_of_epoch: Optimizer steps of a pass over the images; infinite or negative
            if unknown.
        min_epochs: Passes that the run must have, if their length is known.
        min_steps: Steps that the run must have.
    """
    known = steps_of_epoch if math.isfinite(steps_of_epoch) else 0
    least = math.ceil(min_epochs * known)
    return max(FEWEST_STEPS, int(known), least, min_steps)


def give_length(trainer: Trainer) -> bool:
    """Set the length of a run for which neither *max_steps* nor *max_epochs* was given.

    Args:
        trainer: A trainer about to fit, with its data attached.

    Returns:
        Whether the trainer was changed; `take_length_back` undoes it.
    """
    if trainer.max_steps != -1 or trainer.max_epochs != UNLIMITED_EPOCHS:
        return False
    epoch = trainer.estimated_stepping_batches / UNLIMITED_EPOCHS
    steps = planned_length(epoch, trainer.min_epochs or 0, trainer.min_steps or 0)
    trainer.fit_loop.max_epochs = -1
    trainer.fit_loop.epoch_loop.max_steps = steps
    rank_zero_warn(
        f'the run has {steps} optimizer steps, instead of the {UNLIMITED_EPOCHS} epochs'
        ' that Lightning plans if no length is given: set trainer.max_steps to change'
        ' this'
    )
    return True


def take_length_back(trainer: Trainer) -> None:
    """Restore a trainer to what it was before `give_length`."""
    trainer.fit_loop.max_epochs = UNLIMITED_EPOCHS
    trainer.fit_loop.epoch_loop.max_steps = -1


def shortened(
    options: DINOv2Options, base_lr: float | None, steps: int, width: int
) -> tuple[DINOv2Options, float]:
    """Return the options and the learning rate of the short recipe.

    In longer runs the rate is lower and the teacher's memory longer: at the paper's
    6,250 steps the momentum is the paper's, 1 - 40 / 6250 = 0.994. The rate falls with
    the square of the base's width, because a ViT-S, twice as wide as a ViT-Ti, was best
    at a quarter of its rate and collapsed at all of it in 100 steps. Widths above 384
    were not measured. Options that were set to another value than the default are kept.

    Args:
        options: As given.
        base_lr: As given; None to get that of the recipe.
        steps: Optimizer steps planned.
        width: Of the base's tokens.
    """
    paper = DINOv2Options()
    # The teacher remembers a fortieth of the run.
    short = _SHORT | {'momentum': (max(0.8, 1 - 40 / steps), 1.0)}
    left = {
        name: value
        for name, value in short.items()
        if getattr(options, name) == getattr(paper, name)
    }
    rate = min(5e-3, 1.56 / steps) * min(1.0, (TUNED_WIDTH / width) ** 2)
    return replace(options, **left), rate if base_lr is None else base_lr
