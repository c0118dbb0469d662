"""Queries, keys and values: one product with a fused weight against three.

The weights are frozen, as in most blocks of an adaptation: backward computes only the
gradient of the tokens.
"""

from typing import Any

import torch
from timing import Clock
from torch import Tensor, nn

WARMUP, TIMED = 3, 10


def compare_projections(
    device: torch.device, width: int, tokens: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the median milliseconds of both, forward and backward.

    Args:
        device: Where to measure.
        width: D.
        tokens: Rows, of all images together.
        dtype: Of tokens and weights.

    Returns:
        'fused' and 'split', and 'split_over_fused', their ratio.
    """
    arguments = {'device': device, 'dtype': dtype}
    fused = nn.Linear(width, 3 * width, **arguments).requires_grad_(False)
    split = nn.ModuleList(nn.Linear(width, width, **arguments) for _ in range(3))
    split.requires_grad_(False)
    x = torch.randn(tokens, width, **arguments, requires_grad=True)
    gradients = [torch.randn(tokens, width, **arguments) for _ in range(3)]

    def by_one() -> list[Tensor]:
        return list(fused(x).chunk(3, dim=-1))

    def by_three() -> list[Tensor]:
        return [layer(x) for layer in split]

    clocks = {'fused': Clock(device), 'split': Clock(device)}
    # In turn, so that changes in the machine's speed affect both.
    for _ in range(WARMUP + TIMED):
        for clock, project in zip(clocks.values(), (by_one, by_three), strict=True):
            clock.start()
            torch.autograd.grad(project(), x, gradients)
            clock.mark('both ways')
    found: dict[str, Any] = {
        name: clock.milliseconds(skip=WARMUP)['step'] for name, clock in clocks.items()
    }
    return found | {'split_over_fused': round(found['split'] / found['fused'], 3)}
