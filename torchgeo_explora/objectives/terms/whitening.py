"""A projection head that tells tokens apart before it is trained."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchgeo_explora.functional.ranks import mean_over_ranks
from torchgeo_explora.models.heads.dino import DINOHead

#: Directions with less than this share of the largest variance are noise.
_FLOOR = 1e-4
#: Below this share of the mean square, variance is rounding.
_ALIKE = 1e-9


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
    outputs = [head.mlp(kind).double() for kind in tokens if len(kind)]
    mean = mean_over_ranks(torch.stack([z.mean(0) for z in outputs]).mean(0))
    moment = torch.stack([z.T @ z / len(z) for z in outputs]).mean(0)
    covariance = mean_over_ranks(moment) - torch.outer(mean, mean)
    # On the CPU, so that all processes get the same bits.
    values, vectors = torch.linalg.eigh(covariance.cpu())
    if values[-1] <= _ALIKE * moment.trace().cpu():
        # Blank images: there is nothing to tell apart.
        return
    scale = values.clamp_min(values[-1] * _FLOOR).rsqrt()
    whitening = ((vectors * scale) @ vectors.T).to(mean.device)
    last = head.mlp[-1]
    assert isinstance(last, nn.Linear)
    last.bias.copy_(whitening @ (last.bias.double() - mean))
    last.weight.copy_(whitening @ last.weight.double())
