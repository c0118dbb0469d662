"""Whiten a new projection head, so that it tells tokens apart before training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.functional.ranks import mean_over_ranks
from torchgeo_explora.models.heads.dino import DINOHead

#: Directions with less than this share of the largest variance are treated as noise.
_FLOOR = 1e-4
#: Variance below this share of the mean square is treated as a rounding error.
_ALIKE = 1e-6


@torch.no_grad()
def whiten_(head: DINOHead, tokens: Sequence[Tensor]) -> None:
    """Change the last layer of a head's MLP, in place, so that its outputs are white.

    After a random MLP, all tokens of a pre-trained backbone point in nearly the same
    direction, and targets are close to noise. Once whitened, the MLP's outputs have
    mean 0 and the identity as covariance, with equal weight for each kind of token.
    https://arxiv.org/abs/1511.06422 also initialises layers from the first batch, by
    variance instead of covariance.

    Args:
        head: The head; the last linear layer of its MLP is changed.
        tokens: Kinds of tokens, (rows, D) each; those of all processes are used.
    """
    width = head.prototypes.direction.shape[1]
    # For each kind: rows, sum and second moment over all processes.
    statistics = []
    for kind in tokens:
        z = head.mlp(kind).float()
        parts = [z.new_tensor([len(z)]), z.sum(0), (z.T @ z).flatten()]
        total = mean_over_ranks(torch.cat(parts)).cpu().double()
        if total[0]:
            statistics.append(total[1:] / total[0])
    if not statistics:
        return
    # On the CPU, so that all processes get the same bits.
    mean, moment = torch.stack(statistics).mean(0).split([width, width * width])
    moment = moment.view(width, width)
    if not moment.isfinite().all():
        # Left to the loss, which reports what is not finite.
        return
    values, vectors = torch.linalg.eigh(moment - torch.outer(mean, mean))
    if values[-1] <= _ALIKE * moment.trace():
        # Blank images: there is nothing to tell apart.
        return
    scale = values.clamp_min(values[-1] * _FLOOR).rsqrt()
    whitening = (vectors * scale) @ vectors.T
    last: Any = head.mlp[-1]
    last.bias.copy_(whitening @ (last.bias.cpu().double() - mean))
    last.weight.copy_(whitening @ last.weight.cpu().double())
