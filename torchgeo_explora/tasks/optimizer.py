"""AdamW over what trains, with a warm-up and a cosine by optimizer step."""

from functools import partial
from typing import Any

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from torchgeo_explora.functional import cosine_schedule


def optimizer_plan(
    groups: list[dict[str, Any]],
    lr: float,
    min_lr: float,
    steps: int,
    warmup: float,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool,
) -> dict[str, Any]:
    """Return optimizer and schedule as Lightning takes them.

    Args:
        groups: AdamW's groups. Beside AdamW's own keys, 'still' is the share of the run
            in which a group stays where it is.
        lr: Largest rate.
        min_lr: Rate at the end.
        steps: Optimizer steps planned.
        warmup: Share of the run with a linear warm-up.
        betas: AdamW's coefficients.
        weight_decay: AdamW's weight decay.
        fused: Whether AdamW works in one kernel for many tensors.
    """

    def share(still: float, step: int) -> float:
        if step < int(still * steps):
            return 0.0
        return cosine_schedule(step, steps, lr, min_lr, warmup=int(warmup * steps)) / lr

    rates = [partial(share, group.pop('still', 0.0)) for group in groups]
    optimizer = AdamW(
        groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused or None
    )
    scheduler = LambdaLR(optimizer, list(rates))
    return {
        'optimizer': optimizer,
        'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'},
    }


def may_fuse(device: torch.device, precision: str) -> bool:
    """Return whether AdamW's fused kernel serves.

    With a gradient scaler it would divide by the scale by itself, after gradients have
    been clipped.

    Args:
        device: Where the weights are.
        precision: The trainer's.
    """
    return device.type == 'cuda' and precision != '16-mixed'
