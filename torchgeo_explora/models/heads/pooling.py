"""Inputs of heads: pooled tokens of a backbone, or maps of its tokens."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.tokens import Features


def probe_input(features: Sequence[Features], blocks: int, average: bool) -> Tensor:
    """Return the input of a linear probe (DINOv2, `eval/linear.py`).

    Args:
        features: Features of consecutive blocks up to the last one, in their order.
        blocks: Number of last blocks whose class tokens are used, at least 1.
        average: Whether to append the mean patch token of the last block.

    Returns:
        (B, D * (blocks + average)), class tokens in the order of the blocks.

    Raises:
        ValueError: If there are fewer features than *blocks*.
    """
    if not 1 <= blocks <= len(features):
        raise ValueError(
            f'*blocks* {blocks} must be within 1..{len(features)}, the number of blocks'
            ' of the backbone'
        )
    parts = [feature.cls for feature in features[-blocks:]]
    if average:
        parts.append(features[-1].patch.mean(dim=1))
    return torch.cat(parts, dim=-1)


def token_map(patch: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return patch tokens as a feature map, averaged over the tokens of each place.

    With spectral groups or several times, a place has a token for each of them.

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

    'mean' follows MAE's fine-tuning: the mean of the patch tokens *before* any norm,
    then a new norm that starts without scale and shift; the backbone's final norm is
    removed. 'cls' is the class token after the backbone's final norm.

    Args:
        backbone: The backbone; with 'mean', its final norm is replaced by the identity
            in place.
        outputs: Number of logits.
        pooling: Which tokens are used.
        train_norm: Whether the new norm of 'mean' is trained. The authors of ExPLoRA
            keep it frozen.
    """

    def __init__(
        self,
        backbone: Backbone,
        outputs: int,
        pooling: Literal['mean', 'cls'] = 'mean',
        train_norm: bool = False,
    ) -> None:
        """Create the classifier with weights near zero."""
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
