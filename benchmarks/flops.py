"""Floating-point operations of a step, from its token counts."""

from torch import nn

from torchgeo_explora.models import DINOHead, ViT

FORMULA = (
    '2 operations per multiply-add. Forward: a linear layer of n weights over S tokens'
    ' takes 2 S n, attention 4 S^2 D in each block, patches 2 N D P. The student sees 2'
    ' global and V local views, the teacher the 2 global ones, the heads the class'
    ' tokens and the masked patches as counted. Backward: 2 S n for the input of every'
    ' linear layer, 2 S n more where its weights train, twice the forward for'
    ' attention, nothing for patches. Norms, softmax, losses, augmentation, optimizer'
    ' and moving average are left out.'
)


def crop_flops(backbone: ViT, size: int) -> tuple[int, int]:
    """Return the operations of one square crop, forward and backward.

    Args:
        backbone: A ViT, adapted or not; its class token trains.
        size: Side of the crop in pixels.
    """
    side = size // backbone.patch_size
    patches = side * side
    tokens = backbone.prefix().shape[1] + patches
    attention = 4 * tokens**2 * backbone.embed_dim * len(backbone.blocks)
    forward, backward = linear_flops(backbone.blocks, tokens)
    values = backbone.in_channels * backbone.patch_size**2
    embedding = 2 * patches * backbone.embed_dim * values
    return forward + attention + embedding, backward + 2 * attention


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
    global_forward, global_backward = crop_flops(backbone, sizes[0])
    local_forward, local_backward = crop_flops(backbone, sizes[1])
    student = 2 * (global_forward + global_backward)
    student += local_views * (local_forward + local_backward)
    heads = 3 * head_flops(head, 1) * rows[0] + head_flops(head, 1) * rows[1]
    return round(images * (student + 2 * global_forward) + heads)
