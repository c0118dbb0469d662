"""Floating-point operations of an image in pre-training, counted by a formula."""

from collections.abc import Iterable
from math import prod
from typing import Any

from torch import Tensor, nn

from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.heads.dino import DINOHead
from torchgeo_explora.objectives import MAE, DINOv2, Objective

FORMULA = (
    '2 operations per multiply-add. Forward: a linear layer of n weights over S tokens'
    ' takes 2 S n, attention 4 S^2 D in each block, embedding the N patches of P values'
    ' 2 N D P. Backward: 2 S n for the input of every linear layer, 2 S n more where'
    ' its weights train, and twice the forward for attention. In the last block of'
    ' DINOv2, only keys and values are for all tokens; the rest is for the class'
    ' tokens and the masked patches, of which the expected number counts. Left out:'
    ' norms, softmax, losses, augmentation, the optimizer, the moving average, what'
    ' is computed a second time to save memory, and the evaluations in between.'
)


def vit_operations(
    blocks: nn.Sequential, width: int, tokens: int, rows: float | None = None
) -> tuple[float, float]:
    """Return the operations of a ViT's blocks for one sequence, by `FORMULA`.

    The input of the first block needs a gradient, as with a trained class token.

    Args:
        blocks: Blocks with `attn.k` and `attn.v` as linear layers, adapted or not.
        width: D, width of a token.
        tokens: S, special tokens included.
        rows: Number of tokens whose output is needed from the last block; all if None.

    Returns:
        Forward and backward.
    """
    forward, backward = _linear([blocks], tokens)
    attention = 4.0 * tokens**2 * width * len(blocks)
    if rows is not None:
        last: Any = blocks[-1]
        for_all = _linear([last.attn.k, last.attn.v], 1)
        fewer = rows - tokens
        whole = _linear([last], 1)
        forward += fewer * (whole[0] - for_all[0])
        backward += fewer * (whole[1] - for_all[1])
        attention += 4.0 * fewer * tokens * width
    return forward + attention, backward + 2 * attention


def image_operations(objective: Objective, views: Any) -> float | None:
    """Return the operations of one training image, by `FORMULA`.

    Args:
        objective: The method.
        views: What its `augment` returned for a batch.

    Returns:
        None for a method whose passes are not known here.
    """
    if isinstance(objective, DINOv2):
        anchor: Tensor | None = getattr(views, 'anchor', None)
        return _dinov2(objective, views.global_, views.local, anchor)
    if isinstance(objective, MAE):
        return _mae(objective, views)
    return None


def _dinov2(
    objective: DINOv2, global_: Tensor, local: Tensor, anchor: Tensor | None
) -> float:
    student, options = objective.student, objective.options
    special = student.prefix().shape[1]
    large, small = _patches(student, global_), _patches(student, local)
    masked = large * options.mask_probability * sum(options.mask_ratio) / 2
    total = 0.0
    wanted = None if objective.anchor is not None else 1 + masked
    for count, patches, rows in ((2, large, wanted), (len(local), small, 1)):
        passes = vit_operations(
            student.blocks, student.embed_dim, special + patches, rows
        )
        total += count * (sum(passes) + _embedding(student, patches))
    teacher = vit_operations(
        student.blocks, student.embed_dim, special + large, 1 + masked
    )
    total += 2 * (teacher[0] + _embedding(student, large))
    if objective.anchor is not None:
        patches = _patches(student, global_ if anchor is None else anchor)
        passes = vit_operations(
            objective.anchor.blocks, student.embed_dim, special + patches
        )
        total += 2 * (passes[0] + _embedding(student, patches))
    # A head is trained in full: three forwards for the student, one for the teacher.
    cls, patch = 3 * (2 + len(local)) + 2, (3 + 1) * 2 * masked
    if objective.ibot_head is None:
        return total + (cls + patch) * _head(objective.head)
    return total + cls * _head(objective.head) + patch * _head(objective.ibot_head)


def _mae(objective: MAE, image: Tensor) -> float:
    student, decoder = objective.student, objective.decoder
    special = student.prefix().shape[1]
    times = image.shape[1] if image.ndim == 5 else 1
    patches = times * _patches(student, image)
    visible = int(patches * (1 - objective.options.mask_ratio))
    encoder = vit_operations(student.blocks, student.embed_dim, special + visible)
    dim = decoder.embed.out_features
    decoding = vit_operations(decoder.blocks, dim, 1 + patches)
    entry = _linear([decoder.embed], 1 + visible)
    # Each group of bands has a prediction layer of its own, for its own tokens.
    ends = [
        part
        for name, part in decoder.named_children()
        if name not in ('blocks', 'embed')
    ]
    prediction = _linear(ends, patches // student.layers)
    parts = (encoder, decoding, entry, prediction)
    return sum(map(sum, parts)) + _embedding(student, patches)


def _patches(backbone: Backbone, views: Tensor) -> int:
    """Return N of views (..., H, W): patches times groups of bands."""
    sides = (side // backbone.patch_size for side in views.shape[-2:])
    return backbone.layers * prod(sides)


def _embedding(backbone: Backbone, patches: int) -> float:
    # Each group embeds only its own bands.
    values = backbone.in_channels * backbone.patch_size**2 / backbone.layers
    return 2 * patches * backbone.embed_dim * values


def _head(head: DINOHead) -> float:
    """Return the forward operations of a head for one token."""
    return _linear([head.mlp], 1)[0] + 2.0 * head.prototypes.direction.numel()


def _linear(modules: Iterable[nn.Module], rows: float) -> tuple[float, float]:
    """Return the operations of all linear layers, forward and backward."""
    forward = backward = 0.0
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                once = 2.0 * rows * layer.weight.numel()
                forward += once
                backward += once * (2 if layer.weight.requires_grad else 1)
    return forward, backward
