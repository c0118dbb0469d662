"""Terms that regularise features: Gram anchoring and SIGReg."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from torchgeo_explora.functional.ranks import mean_over_ranks


def gram_loss(student: Tensor, anchor: Tensor) -> Tensor:
    """Distance between the cosine similarities of two sets of patch features.

    DINOv3's Gram anchoring (https://arxiv.org/abs/2508.10104): mean squared error
    between the two matrices of all pairs of patches, image by image, in float32. Only
    the similarities are held in place, so all features may rotate together.

    Args:
        student: Patch features after the last norm, (B, N, D).
        anchor: The features to compare with, (B, N, D'); no gradient is needed.

    Returns:
        Scalar, 0 where the similarities are equal.

    Raises:
        ValueError: If images or patches differ in number.
    """
    if student.ndim != 3 or student.shape[:2] != anchor.shape[:2]:
        raise ValueError(
            f'student {tuple(student.shape)} and anchor {tuple(anchor.shape)} must both'
            ' be (B, N, D), with the same images and patches'
        )
    with torch.autocast(student.device.type, enabled=False):
        first, second = (
            normalize(features.float(), dim=-1) for features in (student, anchor)
        )
        # (B, N, D) -> (B, N, N)
        return mse_loss(first @ first.mT, second @ second.mT)


def sigreg(
    features: Tensor, directions: Tensor, knots: int = 17, limit: float = 5.0
) -> Tensor:
    """Distance of features from a standard normal distribution, by random projections.

    Along each direction, the squared distance between the empirical characteristic
    function and that of N(0, 1), exp(-t^2 / 2), is weighted by exp(-t^2 / 2) and
    integrated over t from -limit to limit by the trapezoid rule; the mean over the
    directions is returned. Balestriero & LeCun, *LeJEPA*
    (https://arxiv.org/abs/2511.08544), also multiply it by the number of features; here
    that is left to the weight of the term. The characteristic function is averaged over
    all ranks, so one image per device is enough.

    Args:
        features: (B, D), not normalised.
        directions: (D, S), columns of length 1, the same on all ranks.
        knots: Points of the integral, 2 or more.
        limit: End of the integral, above 0.

    Returns:
        Scalar, 0 or more, float32.

    Raises:
        ValueError: If the widths differ.
    """
    if features.ndim != 2 or features.shape[1] != len(directions):
        raise ValueError(
            f'features {tuple(features.shape)} and directions'
            f' {tuple(directions.shape)} must be (B, D) and (D, S)'
        )
    with torch.autocast(features.device.type, enabled=False):
        t = torch.linspace(-limit, limit, knots, device=features.device)
        normal = torch.exp(-t.square() / 2)
        angles = (features.float() @ directions.float()).unsqueeze(-1) * t  # (B, S, T)
        # Real and imaginary part; the latter is 0 for the normal distribution.
        parts = torch.stack([angles.cos().mean(0), angles.sin().mean(0)])
        real, imaginary = mean_over_ranks(parts)
        gap = (real - normal).square() + imaginary.square()  # (S, T)
        return torch.trapezoid(gap * normal, t).mean()
