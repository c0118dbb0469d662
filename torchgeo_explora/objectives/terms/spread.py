"""Terms that spread the class tokens of a batch."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from torchgeo_explora.functional import koleo, sigreg
from torchgeo_explora.functional.ranks import from_first_rank


def koleo_term(cls: Tensor) -> Tensor:
    """Return KoLeo of each of the two global crops, summed (DINOv2).

    Args:
        cls: The student's class tokens, (2 * B, D), crop by crop.
    """
    first, second = (koleo(crop) for crop in cls.chunk(2))
    return first + second


def sigreg_term(projected: Tensor, directions: int) -> Tensor:
    """Return SIGReg of each of the two global crops, summed.

    New directions are drawn at each call, from torch's CPU generator; all processes use
    those of the first.

    Args:
        projected: The student's class tokens after the head's MLP, before they become
            unit vectors, (2 * B, D), crop by crop.
        directions: S, number of random directions.
    """
    drawn = normalize(torch.randn(projected.shape[1], directions), dim=0)
    drawn = from_first_rank(drawn.to(projected.device))
    first, second = (sigreg(crop, drawn) for crop in projected.chunk(2))
    return first + second
