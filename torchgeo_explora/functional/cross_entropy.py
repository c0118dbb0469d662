"""Cross-entropy against soft targets over many prototypes, slice by slice."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Values of a slice. On an accelerator 64 MB of float32; on a CPU 16 MB, which the
# allocator reuses where it would ask the system for larger ones each time.
_SLICE, _CPU_SLICE = 2**24, 2**22


def cross_entropy(
    student: Tensor,
    target: list[Tensor],
    temperature: float,
    prototypes: Tensor | None = None,
) -> Tensor:
    """Return - sum_k target_k log softmax(student / temperature)_k, float32.

    Args:
        student: Logits, (S, R, K), or vectors (S, R, E) if *prototypes* are given.
        target: S tensors (R, K) that need not sum to 1; the same one may come twice.
        temperature: Student temperature.
        prototypes: (K, E); the logits are the products of vectors with its rows, taken
            in the type of autocast where it is on.

    Returns:
        (S, R).
    """
    kind = student.dtype
    device = student.device.type
    if prototypes is not None and torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    loss: Tensor = _CrossEntropy.apply(student, prototypes, kind, temperature, *target)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy that keeps its inputs and three numbers per row, nothing else.

    With 65,536 prototypes a matrix of rows is the largest tensor of a step, and
    log_softmax would keep two of them. Here slices of rows pass through float32,
    forward and backward. With prototypes the logits of a slice are made when it comes,
    twice; without, the one full matrix made is the gradient, in the type of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor | None,
        kind: torch.dtype,
        temperature: float,
        *target: Tensor,
    ) -> Tensor:
        ctx.kinds = student.dtype, None if prototypes is None else prototypes.dtype
        ctx.temperature = temperature
        student = student.to(kind)
        if prototypes is not None:
            prototypes = prototypes.to(kind)
        dtype = torch.promote_types(kind, torch.float32)
        shape = student.shape[:2]
        peak, log_sum, mass, loss = (
            torch.empty(shape, dtype=dtype, device=student.device) for _ in range(4)
        )
        for at in _slices(student, target):
            logits = _logits(student[at], prototypes, dtype)
            goal = target[at[0]][at[1]].to(dtype)
            peak[at] = logits.amax(-1)
            shifted = (logits - peak[at].unsqueeze(-1)).div_(temperature)
            mass[at] = goal.sum(-1)
            loss[at] = (goal * shifted).sum(-1)
            log_sum[at] = shifted.exp_().sum(-1).log_()
        ctx.save_for_backward(student, prototypes, peak, log_sum, mass, *target)
        return log_sum * mass - loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, prototypes, peak, log_sum, mass, *target = ctx.saved_tensors
        of_student, of_prototypes = ctx.kinds
        rest = (None, None, *(None for _ in target))
        result = torch.empty_like(student)
        grad = grad / ctx.temperature
        total = None
        if prototypes is not None and ctx.needs_input_grad[1]:
            # Slices are added up in float32 whatever the type of the products.
            total = torch.zeros_like(prototypes, dtype=peak.dtype)
        for at in _slices(student, target):
            rows = _logits(student[at], prototypes, peak.dtype)
            rows = rows - peak[at].unsqueeze(-1)
            rows.div_(ctx.temperature).sub_(log_sum[at].unsqueeze(-1)).exp_()
            rows.mul_(mass[at].unsqueeze(-1)).sub_(target[at[0]][at[1]])
            rows.mul_(grad[at].unsqueeze(-1))
            if prototypes is None:
                result[at] = rows
                continue
            half = rows.to(student.dtype)
            result[at] = half @ prototypes
            if total is not None and rows.device.type == 'cpu':
                # Adding up products in half precision would copy all of them first.
                total.addmm_(rows.T, student[at].to(rows.dtype))
            elif total is not None:
                total += half.T @ student[at]
        if total is not None:
            total = total.to(of_prototypes)
        return result.to(of_student), total, *rest


def _logits(rows: Tensor, prototypes: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the logits of a slice, (R, K)."""
    return (rows if prototypes is None else rows @ prototypes.T).to(dtype)


def _slices(student: Tensor, target: tuple[Tensor, ...]) -> Iterator[tuple[int, slice]]:
    """Yield (s, rows) that cover (S, R) in slices of so many values of (S, R, K)."""
    groups, rows = student.shape[:2]
    size = _CPU_SLICE if student.device.type == 'cpu' else _SLICE
    prototypes = target[0].shape[-1] if target else 1
    step = max(1, size // max(1, prototypes))
    for group in range(groups):
        for start in range(0, rows, step):
            yield group, slice(start, start + step)
