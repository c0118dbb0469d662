"""Cross-entropy with soft targets over many prototypes, slice by slice."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchgeo_explora.functional.autocast import under_autocast

# Values in a slice: 64 MB of float32 on an accelerator, 16 MB on a CPU, whose allocator
# reuses blocks of this size but returns larger ones to the system each time.
_SLICE, _CPU_SLICE = 2**24, 2**22
# Factor on gradients during products: a power of two, so it does not affect rounding,
# that keeps most small probabilities from vanishing in float16.
_LIFT = 64.0


def cross_entropy(
    student: Tensor,
    target: Tensor,
    temperature: float,
    prototypes: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the sum of - w_r sum_k target_k log softmax(student / temperature)_k.

    Args:
        student: Logits, (S, R, K), or vectors (S, R, E) if *prototypes* are given.
        target: (S, R, K), or (1, R, K) for all S. Rows need not sum to 1. It gets no
            gradient.
        temperature: Student temperature.
        prototypes: (K, E). The logits are the products of the vectors with its rows, in
            the type of autocast if that is enabled.
        weight: w, (R,); ones if None.

    Returns:
        Scalar, float32.
    """
    kind = student.dtype
    if prototypes is not None and under_autocast(student):
        kind = torch.get_autocast_dtype(student.device.type)
    if weight is None:
        weight = target.new_ones(target.shape[1])
    if not torch.is_grad_enabled():
        # With gradients off, a Function still sees which tensors require one.
        student = student.detach()
        prototypes = None if prototypes is None else prototypes.detach()
    loss: Tensor = _CrossEntropy.apply(
        student, prototypes, kind, temperature, target, weight.to(student.device)
    )
    return loss


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy that stores its gradient instead of the logits.

    With 65,536 prototypes, a matrix of logits is the largest tensor of a step, and
    log_softmax would store two of them. Here slices of rows pass through float32, and
    the gradient of a slice is computed in the forward pass, while its probabilities are
    available: the gradient of a scalar is known up to one factor. With prototypes, the
    gradient has the size of vectors and prototypes; without them, that of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor | None,
        kind: torch.dtype,
        temperature: float,
        target: Tensor,
        weight: Tensor,
    ) -> Tensor:
        of_student, of_prototypes = ctx.needs_input_grad[:2]
        ctx.kinds = student.dtype, None if prototypes is None else prototypes.dtype
        ctx.scale = 1 / (_LIFT * temperature)
        dtype = torch.promote_types(kind, torch.float32)
        student = student.to(kind)
        found = torch.empty_like(student) if of_student else None
        total = None
        if prototypes is not None:
            if of_prototypes:
                # Slices are summed in float32, whatever the type of the products.
                total = torch.zeros_like(prototypes, dtype=dtype)
            prototypes = prototypes.to(kind)
        loss = torch.zeros((), dtype=dtype, device=student.device)
        for at in _slices(student, target):
            vectors = student[:, at]
            logits = vectors if prototypes is None else vectors @ prototypes.T
            goal, share = target[:, at].to(dtype), weight[at].to(dtype)
            logits = logits.to(dtype)
            peak = logits.amax(-1, keepdim=True)
            rows = torch.add(peak / -temperature, logits, alpha=1 / temperature)
            mass, reached = goal.sum(-1), (goal * rows).sum(-1)
            norm = rows.exp_().sum(-1)
            loss += (share * (mass * norm.log() - reached)).sum()
            if found is None and total is None:
                continue
            share = _LIFT * share
            rows.mul_((share * mass / norm).unsqueeze(-1))
            rows.addcmul_(goal, share.unsqueeze(-1), value=-1)
            if found is not None:
                found[:, at] = (
                    rows if prototypes is None else rows.to(kind) @ prototypes
                )
            if total is not None:
                _add_product(total, rows.flatten(0, 1), vectors.flatten(0, 1))
        ctx.save_for_backward(found, total)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad * ctx.scale
        gradients = (
            None if tensor is None else (tensor.to(scale.dtype) * scale).to(kind)
            for tensor, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True)
        )
        return (*gradients, None, None, None, None)


def _add_product(total: Tensor, rows: Tensor, vectors: Tensor) -> None:
    """Add `rows.T @ vectors` to a float32 total."""
    if total.device.type != 'cpu' and vectors.dtype == torch.bfloat16:
        total += rows.to(vectors.dtype).T @ vectors
    else:
        # On a CPU, adding a product in half precision would copy it first. In float16
        # a product could overflow if all rows have the same prototype as target.
        total.addmm_(rows.T, vectors.to(total.dtype))


def _slices(student: Tensor, target: Tensor) -> Iterator[slice]:
    """Yield slices of R such that (S, slice, K) has a limited number of values."""
    size = _CPU_SLICE if student.device.type == 'cpu' else _SLICE
    rows, prototypes = target.shape[1:]
    step = max(1, size // max(1, len(student) * prototypes))
    for start in range(0, rows, step):
        yield slice(start, start + step)
