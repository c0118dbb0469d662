"""Settings of D-ExPLoRA that go together: the paper's, and those for few images."""

from dataclasses import replace
from typing import Any, Literal

from torchgeo_explora.objectives import DINOv2Options

#: 'paper' are the defaults; 'short' is for few images; 'auto' takes 'short' for runs of
#: fewer than `SHORT_RUN` optimizer steps.
type Recipe = Literal['auto', 'short', 'paper']
RECIPES = ('auto', 'short', 'paper')

SHORT_RUN = 2000
#: A new head teaches little while its targets are nearly uniform, and a teacher that
#: hardly moves teaches what the base knew. Measured with a ViT-Ti on EuroSAT only.
_SHORT: dict[str, Any] = {
    'prototypes': 512,
    'hidden_dim': 512,
    'bottleneck_dim': 64,
    'teacher_temperature': (0.02, 0.03),
    'momentum': (0.9, 1.0),
}
BASE_LR = 1e-3
_SHORT_LR = 2e-2


def shortened(options: DINOv2Options, base_lr: float) -> tuple[DINOv2Options, float]:
    """Return the options and the rate of the short recipe.

    What was set to another value than the default stays.

    Args:
        options: As given.
        base_lr: As given.
    """
    paper = DINOv2Options()
    left = {
        name: value
        for name, value in _SHORT.items()
        if getattr(options, name) == getattr(paper, name)
    }
    return replace(options, **left), _SHORT_LR if base_lr == BASE_LR else base_lr
