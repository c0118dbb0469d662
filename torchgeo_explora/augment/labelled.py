"""Random patches of images together with their masks."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def random_patches(
    image: Tensor, mask: Tensor, size: int, fill: int
) -> tuple[Tensor, Tensor]:
    """Cut a patch at random out of each image and its mask, turned and mirrored.

    Images that are smaller are padded with zeros. Randomness is torch's CPU generator.

    Args:
        image: (B, C, H, W).
        mask: (B, H, W).
        size: Side of the patches.
        fill: Value of the mask where the image is padded.

    Returns:
        (B, C, size, size) and (B, size, size).
    """
    height, width = image.shape[-2:]
    right, below = max(0, size - width), max(0, size - height)
    image = pad(image, (0, right, 0, below))
    mask = pad(mask, (0, right, 0, below), value=fill)
    images: list[Tensor] = []
    masks: list[Tensor] = []
    for of_image, of_mask in zip(image, mask, strict=True):
        top = int(torch.randint(image.shape[-2] - size + 1, ()))
        left = int(torch.randint(image.shape[-1] - size + 1, ()))
        turns, mirrored = int(torch.randint(4, ())), bool(torch.rand(()) < 0.5)
        for whole, parts in ((of_image, images), (of_mask, masks)):
            part = whole[..., top : top + size, left : left + size]
            part = torch.rot90(part, turns, (-2, -1))
            parts.append(part.flip(-1) if mirrored else part)
    return torch.stack(images), torch.stack(masks)
