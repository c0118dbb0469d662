"""Visual prompts: trained tokens in addition to those of an image."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchgeo_explora.models.backbones.backbone import Backbone


class Prompts(nn.Module):
    """Trained tokens in front of a frozen ViT's blocks.

    Jia et al., *Visual Prompt Tuning* (https://arxiv.org/abs/2203.12119). Shallow
    prompts enter the first block and go through all; deep ones are replaced before
    every block by that block's own. They are placed between the class token and the
    patches, and are removed after the last block, so that features keep their shape.
    Values start uniform within +- sqrt(6 / (3 p^2 + D)), as in the reference code.

    The blocks get hooks; no name and no weight of the backbone changes. PEFT has no
    prompts for a ViT.

    Args:
        backbone: The backbone whose blocks get the prompts.
        count: Prompts for each block, 1 or more.
        deep: Whether every block has its own prompts.

    Raises:
        ValueError: If *count* is below 1.
    """

    def __init__(self, backbone: Backbone, count: int, deep: bool = False) -> None:
        """Draw the prompts and hook the blocks."""
        super().__init__()
        if count < 1:
            raise ValueError(f'*count* is {count}: give 1 prompt or more')
        blocks: Any = backbone.blocks
        rows = len(blocks) if deep else 1
        bound = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.embed_dim))
        values = torch.empty(rows, count, backbone.embed_dim).uniform_(-bound, bound)
        self.tokens = nn.Parameter(values)
        for index, block in enumerate(blocks):
            if index < rows:
                block.register_forward_pre_hook(self._entering(index))
        blocks[-1].register_forward_hook(self._leaving)

    @property
    def count(self) -> int:
        """Prompts for each block."""
        return self.tokens.shape[1]

    def _entering(self, index: int) -> Any:
        # Before a later block, the prompts of the previous one are replaced.
        first = 1 + (self.count if index else 0)

        def hook(block: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *others = arguments
            own = self.tokens[index].expand(len(x), -1, -1).to(x.dtype)
            return torch.cat([x[:, :1], own, x[:, first:]], dim=1), *others

        return hook

    def _leaving(self, block: nn.Module, arguments: Any, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, 1 + self.count :]], dim=1)
