"""AdamW over the trainable parameters, with warm-up and cosine by optimizer step."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from torchgeo_explora.checks import require_positive, require_share
from torchgeo_explora.functional import cosine_schedule
from torchgeo_explora.models.backbones.backbone import Backbone


@dataclass(frozen=True)
class Schedule:
    """AdamW's schedule and settings; the defaults are those of D-ExPLoRA.

    Args:
        min_lr: Learning rate at the end of the cosine, if the largest is above it.
        warmup: Share of the run with a linear warm-up, from 0 to below 1.
        betas: AdamW's coefficients.
        weight_decay: AdamW's weight decay.

    Raises:
        ValueError: If one is out of range.
    """

    min_lr: float = 1e-6
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_share('warmup', self.warmup, below_one=True)
        require_positive('min_lr', self.min_lr, or_zero=True)
        require_positive('weight_decay', self.weight_decay, or_zero=True)
        for beta in self.betas:
            require_share('betas', beta, below_one=True)


def optimizer_plan(
    groups: list[dict[str, Any]],
    lr: float,
    steps: int,
    schedule: Schedule,
    fused: bool,
) -> dict[str, Any]:
    """Return optimizer and schedule in Lightning's form.

    Args:
        groups: AdamW's groups. In addition to AdamW's own keys, 'still' is the share of
            the run during which a group is not trained.
        lr: Largest learning rate.
        steps: Optimizer steps planned.
        schedule: Warm-up, final rate and settings.
        fused: Whether to use AdamW's fused kernel, one for many tensors.
    """
    # A rate below that of the end stays as it is, instead of rising.
    last = min(schedule.min_lr, lr)

    def share(still: float, step: int) -> float:
        if step < int(still * steps):
            return 0.0
        warmup = int(schedule.warmup * steps)
        return cosine_schedule(step, steps, lr, last, warmup=warmup) / lr

    rates = [partial(share, group.pop('still', 0.0)) for group in groups]
    optimizer = AdamW(
        groups,
        lr=lr,
        betas=schedule.betas,
        weight_decay=schedule.weight_decay,
        fused=fused or None,
    )
    scheduler = LambdaLR(optimizer, list(rates))
    return {
        'optimizer': optimizer,
        'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'},
    }


def without_decay(
    group: dict[str, Any], vectors: Iterable[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Split a group of AdamW in two: matrices, and vectors without weight decay.

    Vectors are norms, biases and LayerScale.

    Args:
        group: An AdamW group, with its 'params'.
        vectors: Parameters that count as vectors whatever their shape.
    """
    given = {id(parameter) for parameter in vectors}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in group['params']:
        vector = parameter.ndim < 2 or id(parameter) in given
        (others if vector else matrices).append(parameter)
    parts = [
        {**group, 'params': matrices},
        {**group, 'params': others, 'weight_decay': 0.0},
    ]
    return [part for part in parts if part['params']]


def may_fuse(device: torch.device, precision: str) -> bool:
    """Return whether AdamW's fused kernel can be used.

    With a gradient scaler it would undo the scaling itself, after gradients have been
    clipped.

    Args:
        device: Where the weights are.
        precision: The trainer's precision.
    """
    return device.type == 'cuda' and precision != '16-mixed'


#: These have no weight decay, although they have three dimensions.
_STILL = ('cls_token', 'pos_embed')


def layer_groups(
    backbone: Backbone,
    others: Iterable[nn.Parameter],
    rate: float,
    decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return AdamW's groups, with learning rates that fall towards the input.

    As in MAE's fine-tuning: in a ViT of L blocks the embeddings are layer 0, block i is
    layer i + 1 and the rest is layer L + 1; layer l has the rate
    rate * decay^(L + 1 - l). Only trainable parameters are included. Vectors, class
    token and positions have no weight decay.

    Args:
        backbone: The ViT.
        others: Parameters outside the ViT, which get the full rate.
        rate: Learning rate of the last layer.
        decay: Factor from one layer to the next; 1 for the same rate everywhere.
        weight_decay: Weight decay of all other parameters.
    """
    blocks: Any = backbone.blocks
    last = len(blocks) + 1
    layers = {id(p): 0 for p in backbone.parameters()}
    layers |= {id(p): last for p in backbone.norm.parameters()}
    for index, block in enumerate(blocks):
        layers |= {id(p): index + 1 for p in block.parameters()}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    named = [*backbone.named_parameters(), *(('', parameter) for parameter in others)]
    for name, parameter in named:
        if parameter.requires_grad:
            layer = layers.get(id(parameter), last)
            still = parameter.ndim < 2 or name in _STILL
            group = groups.setdefault(
                (layer, still),
                {
                    'params': [],
                    'lr': rate * decay ** (last - layer),
                    'weight_decay': 0.0 if still else weight_decay,
                },
            )
            group['params'].append(parameter)
    return [groups[key] for key in sorted(groups)]
