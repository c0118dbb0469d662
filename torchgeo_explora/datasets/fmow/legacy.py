"""How SatMAE builds a series, kept to compare with its published models."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def legacy_members(index: int, siblings: Sequence[int]) -> tuple[int, int, int]:
    """Return the images of a series: the first, then up to two others at random.

    They are in the order of the draw, not of time. A single other image is used twice;
    without any, the first one is used three times. Draws from PyTorch's global
    generator.

    Args:
        index: The first image.
        siblings: The other images of its place.
    """
    if len(siblings) < 2:
        other = siblings[0] if siblings else index
        return index, other, other
    first, second = torch.randperm(len(siblings))[:2].tolist()
    return index, siblings[first], siblings[second]


def legacy_stack(images: Sequence[Tensor], size: int) -> Tensor:
    """Bring three images to one size, with one random crop for all.

    The shorter sides are resized to *size* without antialiasing. If all images are then
    wider than *size*, or all taller, they are cut to the smallest of them, starting at
    the left or at the top. Otherwise, as with square images, the first one is used
    three times, while the times stay those of all three. Draws from PyTorch's global
    generator.

    Args:
        images: Three images (C, H, W).
        size: Side of the result in pixels.

    Returns:
        (3, C, size, size).
    """
    fitted = [_shorter_side(image, size) for image in images]
    for axis in (-1, -2):
        least = min(image.shape[axis] for image in fitted)
        if least > size:
            stack = torch.stack([image.narrow(axis, 0, least) for image in fitted])
            break
    else:
        stack = torch.stack([fitted[0]] * 3)
    height, width = stack.shape[-2:]
    top = int(torch.randint(height - size + 1, ()))
    left = int(torch.randint(width - size + 1, ()))
    return stack[..., top : top + size, left : left + size].contiguous()


def _shorter_side(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[-2:]
    if height <= width:
        shape = (size, int(size * width / height))
    else:
        shape = (int(size * height / width), size)
    return F.interpolate(image[None], shape, mode='bilinear')[0]
