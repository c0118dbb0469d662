"""What a head reads from a backbone: pooled tokens, or maps of them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.tokens import Features


def probe_input(features: Sequence[Features], blocks: int, average: bool) -> Tensor:
    """Return what a linear probe reads (DINOv2, `eval/linear.py`).

    Args:
        features: Of consecutive blocks up to the last one, oldest first.
        blocks: How many of the last ones give their class token, 1 or more.
        average: Whether the mean patch token of the last block is appended.

    Returns:
        (B, D * (blocks + average)), class tokens oldest first.

    Raises:
        ValueError: If there are not as many features.
    """
    if not 1 <= blocks <= len(features):
        raise ValueError(
            f'*blocks* {blocks} must be within 1..{len(features)}, as many as the'
            ' backbone has'
        )
    parts = [feature.cls for feature in features[-blocks:]]
    if average:
        parts.append(features[-1].patch.mean(dim=1))
    return torch.cat(parts, dim=-1)


def token_map(patch: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return patch tokens as a map; those of one place are averaged.

    Spectral groups and times have a token each for the same place.

    Args:
        patch: (B, G * h * w, D).
        grid: (h, w).

    Returns:
        (B, D, h, w).
    """
    height, width = grid
    tokens = patch.unflatten(1, (-1, height * width)).mean(1)  # -> (B, h * w, D)
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class PooledHead(nn.Module):
    """A linear classifier on the pooled tokens of a backbone.

    'mean' is MAE's fine-tuning: the mean of the patch tokens *before* any norm, then a
    norm of its own that starts as the identity map; the backbone's final norm is taken
    away. 'cls' is the class token after the backbone's final norm.

    Args:
        backbone: Its final norm becomes the identity for 'mean', in place.
        outputs: Number of logits.
        pooling: What is read.
        train_norm: Whether the norm of 'mean' trains. The authors of ExPLoRA keep it
            frozen.
    """

    def __init__(
        self,
        backbone: Backbone,
        outputs: int,
        pooling: Literal['mean', 'cls'] = 'mean',
        train_norm: bool = False,
    ) -> None:
        """Make the classifier, with nearly zero weights."""
        super().__init__()
        if pooling not in ('mean', 'cls'):
            raise ValueError(f"*pooling* is {pooling!r}: choose 'mean' or 'cls'")
        self.pooling = pooling
        self.norm: nn.Module = nn.Identity()
        if pooling == 'mean':
            backbone.norm = nn.Identity()
            self.norm = nn.LayerNorm(backbone.embed_dim, eps=1e-6)
            self.norm.requires_grad_(train_norm)
        self.linear = nn.Linear(backbone.embed_dim, outputs)
        nn.init.trunc_normal_(self.linear.weight, std=2e-5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        """Return logits, (B, outputs)."""
        pooled = features.cls if self.pooling == 'cls' else features.patch.mean(1)
        return self.linear(self.norm(pooled))
