"""One training step of the objective, as the task does it, without Lightning."""

import math
from typing import NamedTuple

import torch
from timing import Clock
from torch import Tensor
from torch.optim import AdamW, Optimizer

from torchgeo_explora.adapt import Adaptation, adapt, lora, store_frozen
from torchgeo_explora.augment import MultiCrop
from torchgeo_explora.functional import cosine_schedule
from torchgeo_explora.models import ViT
from torchgeo_explora.models.backbones.backbone import compile_blocks
from torchgeo_explora.objectives import DINOv2


class Sizes(NamedTuple):
    """Sizes of views and head: the paper's by default."""

    image_size: int = 224
    local_views: int = 8
    prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256


TINY = Sizes(
    image_size=56, local_views=2, prototypes=64, hidden_dim=32, bottleneck_dim=16
)


def build(
    student: ViT,
    sizes: Sizes,
    device: torch.device,
    rank: int = 64,
    alpha: int = 1,
    momentum: tuple[float, float] = (0.994, 1.0),
    strength: float = 1.0,
    half_base: bool = False,
    checkpointing: bool = False,
    compiled: bool = False,
) -> DINOv2:
    """Adapt *student*, [-1] and LoRA, and put the objective around it.

    Args:
        student: A plain backbone.
        sizes: Sizes of views and head.
        device: Where the objective goes.
        rank: Rank of LoRA.
        alpha: Alpha of LoRA.
        momentum: Momentum of the teacher, at the start and at the end.
        strength: Strength of the photometric part of augmentation.
        half_base: Whether frozen linear weights are stored in bfloat16.
        checkpointing: Whether activations of blocks are recomputed in the backward
            pass.
        compiled: Whether blocks are compiled, as the tasks do.
    """
    adapt(student, Adaptation(adapter=lora(rank, alpha)))
    student.checkpointing = checkpointing
    if half_base:
        store_frozen(student, torch.bfloat16)
    patch = student.patch_size
    views = MultiCrop(
        global_size=sizes.image_size,
        local_size=patch * max(1, round(sizes.image_size * 98 / 224 / patch)),
        local_views=sizes.local_views,
        mean=student.mean,
        std=student.std,
        strength=strength,
    )
    objective = DINOv2(
        student,
        views,
        prototypes=sizes.prototypes,
        hidden_dim=sizes.hidden_dim,
        bottleneck_dim=sizes.bottleneck_dim,
        momentum=momentum,
    )
    if compiled:
        compile_blocks(objective)
    return objective.to(device)


def optimizer_of(objective: DINOv2) -> AdamW:
    """Return AdamW over what is trained; the second group holds the prototypes."""
    prototypes = list(objective.head.prototypes.parameters())
    held = {id(p) for p in prototypes}
    others = [p for p in objective.parameters() if p.requires_grad]
    groups = [[p for p in others if id(p) not in held], prototypes]
    return AdamW(
        [{'params': group} for group in groups],
        lr=1e-4,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        # As in the tasks.
        fused=prototypes[0].is_cuda or None,
    )


def set_rate(
    optimizer: Optimizer, step: int, steps: int, base_lr: float, batch: int
) -> None:
    """Set the rate of the task's default plan at an optimizer step.

    base_lr * sqrt(batch / 1024), warm-up over 5 %, cosine to 1e-6; the prototypes are
    frozen for the first 1.5 %.
    """
    peak = base_lr * math.sqrt(batch / 1024)
    rate = cosine_schedule(step, steps, peak, 1e-6, warmup=int(0.05 * steps))
    others, prototypes = optimizer.param_groups
    others['lr'] = rate
    prototypes['lr'] = 0.0 if step < int(0.015 * steps) else rate


def train_step(
    objective: DINOv2,
    optimizer: Optimizer,
    image: Tensor,
    progress: float,
    clock: Clock,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Do one optimizer step under autocast; return the detached loss.

    Args:
        objective: What is trained.
        optimizer: Optimizer of its parameters.
        image: (B, C, H, W), uint8.
        progress: As in `Objective.forward`.
        clock: Its marks: those of `watch`, loss, backward, optimizer, average.
        dtype: Type of autocast; float32 for none.
    """
    clock.start()
    with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
        terms = objective({'image': image.float().div_(255)}, progress)
        loss = torch.stack([*terms.values()]).sum()
    clock.mark('loss')
    loss.backward()
    clock.mark('backward')
    objective.before_step(progress)
    optimizer.step()
    optimizer.zero_grad()
    clock.mark('optimizer')
    objective.after_step(progress)
    clock.mark('average')
    return loss.detach()
