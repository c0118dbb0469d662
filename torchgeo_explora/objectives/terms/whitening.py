"""A projection head that tells tokens apart before it is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.functional.ranks import mean_over_ranks
from torchgeo_explora.models.heads.dino import DINOHead

#: Directions with less than this share of the largest variance are noise.
_FLOOR = 1e-4
#: Below this share of the mean square, variance is rounding.
_ALIKE = 1e-6


@torch.no_grad()
def whiten_(head: DINOHead, tokens: Sequence[Tensor]) -> None:
    """Rotate and scale the last layer of a head's MLP, in place, by what it returns.

    Behind a random MLP all tokens of a pre-trained backbone point in nearly the same
    direction, and targets are close to noise. Afterwards the MLP's outputs have mean 0
    and the identity as covariance, each kind of token counted alike. Such a start by
    the first batch is that of https://arxiv.org/abs/1511.06422, by covariance instead
    of variance.

    Args:
        head: Of which the weights of the last linear layer change.
        tokens: Kinds of tokens, (rows, D) each; those of all processes count.
    """
    width = head.prototypes.direction.shape[1]
    # Of each kind: rows, sum and second moment, of all processes.
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
        # Left to the loss, which names what is not finite.
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
