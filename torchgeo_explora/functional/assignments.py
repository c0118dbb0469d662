"""From teacher logits to targets: a distribution over the prototypes for each row."""

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Spread the rows evenly over the prototypes (SwAV, section 3; DINOv2's targets).

    Each iteration scales the prototypes to equal mass over all rows, then each row to
    1. In a process group, the rows of all ranks form one batch: every rank must call,
    even one without rows, and ranks may have different numbers of rows.

    The largest logit of each prototype over all ranks is subtracted first. The first
    scaling divides it out again, so the result is that of the plain exponential without
    its overflow. The largest remaining value of each row is also subtracted, so that a
    row far below the others on all prototypes does not vanish. Since prototypes are
    scaled before rows, this is not neutral by itself: it is put back into the first
    scale of the row. Both scalings are kept as vectors, so the matrix is only written
    at the start and at the end.

    Args:
        logits: Logits of this rank's rows, (R, K).
        temperature: Teacher temperature.
        iterations: Number of scalings of prototypes and rows, at least 1.

    Returns:
        (R, K) float32 without gradient; rows sum to 1.

    Raises:
        ValueError: If *iterations* is below 1.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return sinkhorn_knopp_(logits.to(dtype, copy=True), temperature, iterations)


@torch.no_grad()
def sinkhorn_knopp_(mass: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """`sinkhorn_knopp` in place: the logits become the targets.

    Args:
        mass: Logits of this rank's rows, (R, K), float32.
        temperature: Teacher temperature.
        iterations: Number of scalings of prototypes and rows, at least 1.

    Returns:
        *mass*.

    Raises:
        ValueError: If *iterations* is below 1.
    """
    if iterations < 1:
        raise ValueError(f'*iterations* is {iterations}, but must be at least 1')
    # Autocast would multiply matrix and vector in half precision.
    with torch.autocast(mass.device.type, enabled=False):
        rows, prototypes = mass.shape
        peak = mass.amax(0) if rows else mass.new_full((prototypes,), -torch.inf)
        _all_reduce(peak, dist.ReduceOp.MAX)
        mass.sub_(peak)
        rest = mass.amax(1, keepdim=True)  # (R, 1), 0 or below
        mass.sub_(rest).div_(temperature).exp_()

        row_scale = (rest.squeeze(1) / temperature).exp()
        for _ in range(iterations):
            total = mass.T @ row_scale  # (K,)
            _all_reduce(total, dist.ReduceOp.SUM)
            # Without the mean, the scales would drift by R / K in each iteration.
            prototype_scale = total.mean() / total
            row_scale = (mass @ prototype_scale).reciprocal()  # (R,)
        return mass.mul_(prototype_scale).mul_(row_scale.unsqueeze(1))


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    """Reduce in place over all ranks of a process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, operation)


def centered_softmax(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Return the softmax of centred logits (DINO, section 3.1).

    The caller provides the centre. In DINO it is the moving average (momentum 0.9) of
    the batch means of all earlier steps.

    Args:
        logits: (R, K).
        center: (K,), or (1, K).
        temperature: Teacher temperature.

    Returns:
        (R, K) float32; rows sum to 1.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return ((logits.to(dtype) - center) / temperature).softmax(dim=-1)
