"""Gram anchoring: keep the similarities between patches as they are in the base."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from torchgeo_explora.functional import gram_loss
from torchgeo_explora.models.backbones.backbone import Backbone


def gram_term(
    patch: Tensor, grid: tuple[int, int, int], anchor: Backbone, view: Tensor
) -> Tensor:
    """Return the distance of patch similarities from those of an anchor.

    Siméoni et al., *DINOv3* (https://arxiv.org/abs/2508.10104), where the anchor is an
    earlier teacher, and a second ViT in memory.

    Args:
        patch: The student's features of all patches, (B, N, D).
        grid: Their (groups or times or 1, h, w).
        anchor: A backbone that is not trained, such as `adapt.frozen_base(student)`.
        view: The anchor's view of the same crops, (B, C, H', W'), normalised. Its
            features are resized to *grid*, bicubic and without antialiasing.
    """
    with torch.no_grad():
        tokens = anchor.embed(view)
        kept = anchor.encode(tokens.content, tokens.position).patch
        if tokens.grid != grid:
            groups, *size = grid
            # (B, G * h' * w', D) -> (B, G, D, h', w')
            maps = kept.float().unflatten(1, tokens.grid).movedim(-1, 2)
            maps = interpolate(maps.flatten(0, 1), size=tuple(size), mode='bicubic')
            kept = maps.unflatten(0, (-1, groups)).movedim(2, -1).flatten(1, 3)
    return gram_loss(patch, kept)
