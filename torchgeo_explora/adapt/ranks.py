"""AdaLoRA's ranks, which move between layers during training."""

import copy
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

_STATE = ('ipt', 'exp_avg_ipt', 'exp_avg_unc')


class RankSchedule:
    """Give the ranks of AdaLoRA's budget to the layers that need them.

    Zhang et al., *AdaLoRA* (https://arxiv.org/abs/2303.10512). PEFT does this in a
    wrapper around the whole model, which `adapt` does not use; the rules are PEFT's.
    `penalty` is AdaLoRA's penalty on directions that are not orthogonal.

    Args:
        backbone: A backbone that was adapted with *config*.
        config: The adapter's configuration; its *total_step* is replaced.
        steps: Optimizer steps of the run.

    Raises:
        ValueError: If the run is too short for the config's warm-up and end, or there
            are no ranks to remove.
    """

    def __init__(self, backbone: nn.Module, config: AdaLoraConfig, steps: int) -> None:
        """Start with the largest ranks."""
        if config.tinit >= steps - config.tfinal:
            raise ValueError(
                f'AdaLoRA moves ranks from step {config.tinit} to {config.tfinal} steps'
                f' before the end, and the run has {steps}: lower tinit and tfinal'
            )
        if config.target_r >= config.init_r:
            raise ValueError(
                f'AdaLoRA reduces the rank from init_r {config.init_r} to target_r'
                f' {config.target_r}: give a smaller target_r'
            )
        self.backbone = backbone
        self.config = copy.copy(config)
        self.config.total_step = steps
        self.last = steps - config.tfinal
        self.allocator: Any = RankAllocator(backbone, self.config, 'default')
        self.pattern: dict[str, Any] | None = None

    def step(self, done: int) -> None:
        """Move ranks after an optimizer step, while the gradients still exist.

        Args:
            done: Optimizer steps done.
        """
        if done <= self.last:
            _, pattern = self.allocator.update_and_allocate(
                self.backbone, done, force_mask=done == self.last
            )
            self.pattern = pattern or self.pattern
        elif self.pattern is not None:
            self.allocator.mask_using_rank_pattern(self.backbone, self.pattern)

    def penalty(self) -> Tensor:
        """Return how far the directions are from orthogonal, times its weight."""
        distances = []
        for name, matrix in self.backbone.named_parameters():
            if 'lora_A.' in name or 'lora_B.' in name:
                rows = matrix if 'lora_A.' in name else matrix.T
                identity = torch.eye(len(rows), device=rows.device)
                distances.append(torch.linalg.norm(rows @ rows.T - identity))
        return self.config.orth_reg_weight * torch.stack(distances).mean()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        importance = {name: getattr(self.allocator, name) for name in _STATE}
        return importance | {'pattern': self.pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name in _STATE:
            setattr(self.allocator, name, state[name])
        self.pattern = state['pattern']
