"""Floating-point operations of a step, from its token counts."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchgeo_explora.models import DINOHead, ViT

FORMULA = (
    '2 operations per multiply-add. Forward: a linear layer of n weights over S tokens'
    ' takes 2 S n, attention 4 S^2 D in each block, patches 2 N D P. The last block has'
    ' keys and values of all tokens; everything else in it, and the head, is for the'
    ' class tokens and the masked patches alone, as counted. The student sees 2 global'
    ' and V local views, the teacher the 2 global ones. Backward: 2 S n for the input'
    ' of every linear layer, 2 S n more where its weights train, twice the forward for'
    ' attention, nothing for patches. Norms, softmax, losses, augmentation, optimizer,'
    ' moving average and what is done a second time to save memory are left out.'
)


def crop_flops(backbone: ViT, size: int) -> tuple[int, int]:
    """Return the operations of one square crop, forward and backward.

    Those of the last block, except its keys and values, are left to `row_flops`.

    Args:
        backbone: A ViT, adapted or not; its class token is trained.
        size: Side of the crop in pixels.
    """
    tokens = _tokens(backbone, size)
    before, last = backbone.blocks[:-1], backbone.blocks[-1].attn
    attention = 4 * tokens**2 * backbone.embed_dim * len(before)
    parts = [linear_flops(part, tokens) for part in (before, last.k, last.v)]
    forward, backward = (sum(some) for some in zip(*parts, strict=True))
    values = backbone.in_channels * backbone.patch_size**2
    patches = (size // backbone.patch_size) ** 2
    embedding = 2 * patches * backbone.embed_dim * values
    return forward + attention + embedding, backward + 2 * attention


def row_flops(backbone: ViT, size: int) -> tuple[int, int]:
    """Return the operations of one wanted token in the last block, both ways.

    Args:
        backbone: A ViT.
        size: Side of its crop in pixels.
    """
    last = backbone.blocks[-1]
    attention = 4 * _tokens(backbone, size) * backbone.embed_dim
    parts = [linear_flops(p, 1) for p in (last.attn.q, last.attn.proj, last.mlp)]
    forward, backward = (sum(some) for some in zip(*parts, strict=True))
    return forward + attention, backward + 2 * attention


def _tokens(backbone: ViT, size: int) -> int:
    return backbone.prefix().shape[1] + (size // backbone.patch_size) ** 2


def linear_flops(module: nn.Module, rows: int) -> tuple[int, int]:
    """Return the operations of a module's linear layers, forward and backward."""
    forward = backward = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            operations = 2 * rows * layer.weight.numel()
            forward += operations
            backward += operations * (2 if layer.weight.requires_grad else 1)
    return forward, backward


def head_flops(head: DINOHead, rows: int) -> int:
    """Return the forward operations of a head that sees *rows* tokens."""
    mlp, _ = linear_flops(head.mlp, rows)
    return mlp + 2 * rows * head.prototypes.direction.numel()


def step_flops(
    backbone: ViT,
    head: DINOHead,
    images: int,
    sizes: tuple[int, int],
    local_views: int,
    rows: tuple[float, float],
) -> int:
    """Return the operations of one step by `FORMULA`.

    Args:
        backbone: The student.
        head: Its head.
        images: B, images of the step.
        sizes: Sides of a global and of a local view, in pixels.
        local_views: V.
        rows: Tokens that the student's and the teacher's head see.
    """
    large, small = sizes
    local_rows = images * local_views
    student = 2 * images * sum(crop_flops(backbone, large))
    student += local_rows * sum(crop_flops(backbone, small))
    student += (rows[0] - local_rows) * sum(row_flops(backbone, large))
    student += local_rows * sum(row_flops(backbone, small))
    teacher = 2 * images * crop_flops(backbone, large)[0]
    teacher += rows[1] * row_flops(backbone, large)[0]
    heads = head_flops(head, 1) * (3 * rows[0] + rows[1])
    return round(student + teacher + heads)


def counter() -> FlopCounterMode:
    """Return torch's counter of operations, extended by attention on a CPU."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def products(query: Any, key: Any, *_: Any, **__: Any) -> int:
        (images, heads, rows, width), columns = query, key[-2]
        return 4 * images * heads * rows * columns * width

    def twice(_: Any, *shapes: Any, **__: Any) -> int:
        return 2 * products(*shapes)

    return FlopCounterMode(
        display=False, custom_mapping={attention: products, backward: twice}
    )


def utilisation(operations: int, milliseconds: float, rate: float) -> dict[str, float]:
    """Return a step's operations, and their share of what matrix products could reach.

    Args:
        operations: Operations of the step.
        milliseconds: Time of the step.
        rate: Measured TFLOP/s of a matrix product of the same type.
    """
    return {
        'tflop': operations / 1e12,
        'mfu': operations / 1e9 / milliseconds / rate,
    }
