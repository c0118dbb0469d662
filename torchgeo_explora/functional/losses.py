"""Losses of DINOv2 and MAE, with the scales of their reference implementations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_explora.functional.cross_entropy import cross_entropy


def dino_loss(
    local: Tensor,
    global_: Tensor,
    target: Tensor,
    temperature: float = 0.1,
    prototypes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compare the student's views with the teacher's global crops (DINO, eq. 3).

    Each local crop is compared with both targets, each global crop with that of the
    other one. A pair gives a cross-entropy, averaged over the images. Both sums are
    divided by the number of pairs, 2 + 2V. Without local crops the divisor is 3, since
    DINOv2 counts at least one local pair.

    Cross-entropy is linear in the target, so the two targets are added and each local
    crop is read only once.

    Args:
        local: Student logits of the local crops, (V, B, K); V may be 0.
        global_: Student logits of the global crops, (2, B, K).
        target: Teacher distributions, (2, B, K); target[i] belongs to global crop i,
            not swapped. It gets no gradient.
        temperature: Student temperature.
        prototypes: (K, E). If given, *local* and *global_* are vectors (V, B, E) and
            (2, B, E). Their logits are the products with these rows, and are not
            stored.

    Returns:
        Scalar terms of the local and the global crops, float32.

    Raises:
        ValueError: If the shapes do not match.
    """
    width = target.shape[-1] if prototypes is None else prototypes.shape[1]
    if (
        len(global_) != 2
        or target.shape[:2] != global_.shape[:2]
        or global_.shape[-1] != width
        or (prototypes is not None and len(prototypes) != target.shape[-1])
    ):
        raise ValueError(
            f'global logits {tuple(global_.shape)} and target {tuple(target.shape)} '
            'must both be (2, B, K): two global crops of the same images'
        )
    if local.shape[1:] != global_.shape[1:]:
        raise ValueError(
            f'local logits {tuple(local.shape)} must be (V, B, K) with the B and K of '
            f'the global ones {tuple(global_.shape)}: without local crops (0, B, K)'
        )
    both = target.sum(0, keepdim=True)
    local_loss = cross_entropy(local, both, temperature, prototypes)
    global_loss = cross_entropy(global_.flip(0), target, temperature, prototypes)
    scale = local.shape[1] * (2 + max(2 * len(local), 1))
    return local_loss / scale, global_loss / scale


def ibot_loss(
    student: Tensor,
    target: Tensor,
    mask: Tensor,
    temperature: float = 0.1,
    prototypes: Tensor | None = None,
) -> Tensor:
    """Compare masked patches with the teacher's view of them (iBOT, eq. 2).

    The loss is the mean over the masked patches of a crop, averaged over *all* crops as
    in DINOv2: crops without a mask count as zero.

    Args:
        student: Student logits of the masked patches, (M, K), in the order of
            `features[mask]`: crop by crop, row-major.
        target: Teacher distributions of the same patches, (M, K). It gets no gradient.
        mask: (C, N) bool, True where the patch was hidden; M are True. It can be on any
            device; on the CPU, nothing waits for an accelerator.
        temperature: Student temperature.
        prototypes: (K, E). If given, *student* is vectors (M, E), as in `dino_loss`.

    Returns:
        Scalar, float32; if nothing is masked, a zero that is attached to the graph.

    Raises:
        ValueError: If the number of rows is not that of the mask.
    """
    weight = mask.sum(1, keepdim=True).reciprocal().expand(mask.shape)[mask]  # (M,)
    width = target.shape[-1] if prototypes is None else prototypes.shape[1]
    if (
        student.shape != (len(weight), width)
        or len(target) != len(weight)
        or (prototypes is not None and len(prototypes) != target.shape[-1])
    ):
        raise ValueError(
            f'student {tuple(student.shape)} and target {tuple(target.shape)} must '
            f'both have one row for each of the {len(weight)} masked patches'
        )
    loss = cross_entropy(student[None], target[None], temperature, prototypes, weight)
    return loss / len(mask)


def koleo(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Push each feature away from its nearest neighbour (Sablayrolles et al. 2019).

    The loss is minus the mean logarithm of that distance on the unit sphere. The
    gradient reaches both features of a pair. It is computed in float32 even under
    autocast, since *eps* would vanish in half precision.

    Args:
        features: (B, D) with B >= 2, of any norm.
        eps: Added to the differences and to the distances.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: If there is only one feature.
    """
    if len(features) < 2:
        raise ValueError(
            f'KoLeo needs a neighbour for each image, the batch has {len(features)}: '
            'use a micro-batch of 2 or more, or set the weight of KoLeo to 0'
        )
    with torch.autocast(features.device.type, enabled=False):
        dtype = torch.promote_types(features.dtype, torch.float32)
        unit = F.normalize(features.to(dtype), eps=eps, dim=-1)
        with torch.no_grad():
            nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(dim=1)
        distance = F.pairwise_distance(unit, unit[nearest], eps=eps)
        return -(distance + eps).log().mean()


def patch_statistics(patches: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every patch (MAE's `norm_pix`).

    The variance is unbiased and covers all values of a patch together. Values that are
    NaN are unknown and do not count.

    Args:
        patches: (..., P).
        eps: Added to the variance.

    Returns:
        Mean and standard deviation, (..., 1) each, float32.
    """
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    count = (~patches.isnan()).sum(-1, keepdim=True)
    mean = patches.nansum(-1, keepdim=True) / count.clamp(min=1)
    square = (patches - mean).square().nansum(-1, keepdim=True)
    return mean, (square / (count - 1).clamp(min=1) + eps).sqrt()


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Give every patch zero mean and unit variance, using `patch_statistics`.

    Args:
        patches: (..., P). NaN values stay NaN; `masked_mse` ignores them.
        eps: Added to the variance.

    Returns:
        (..., P), float32.
    """
    mean, std = patch_statistics(patches, eps)
    return (patches - mean) / std


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over hidden tokens (MAE, section 3).

    The error is averaged over the values of a token, then over all hidden tokens of the
    batch.

    Args:
        prediction: Predicted pixels, (B, N, P).
        target: True pixels, (B, N, P), normalised per patch if wanted. NaN values are
            ignored, and so are tokens with only NaN values.
        mask: (B, N) bool, True where the token was hidden from the encoder.

    Returns:
        Scalar, float32; if nothing is hidden, a zero that is attached to the graph.

    Raises:
        ValueError: If the shapes do not match.
    """
    if prediction.shape != target.shape or mask.shape != target.shape[:-1]:
        raise ValueError(
            f'prediction {tuple(prediction.shape)}, target {tuple(target.shape)} and '
            f'mask {tuple(mask.shape)} must be (B, N, P), (B, N, P) and (B, N)'
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    known = ~target.isnan() & mask.unsqueeze(-1)
    error = torch.where(known, prediction.to(dtype) - target, 0)
    values = known.sum(-1)
    loss = error.square().sum(-1) / values.clamp(min=1)  # (B, N, P) -> (B, N)
    return loss.sum() / (values > 0).sum().clamp(min=1)
