"""Images of any shape brought to a square."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Share of a pixel without data that makes a resized one so, too.
_TOUCHED = 1e-4


def fit_square(image: Tensor, size: int, no_data: float | None = None) -> Tensor:
    """Bring the shorter side to *size* and cut out the centre.

    Bilinear with antialiasing, which never leaves the range of the values.

    Args:
        image: (C, H, W).
        size: Side of the result in pixels.
        no_data: Value of pixels without data, in all bands. A pixel of the result that
            such a one has a part in has it, too.

    Returns:
        (C, size, size).
    """
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    if shape != (height, width):
        bands = image
        if no_data is not None:
            missing = (image == no_data).all(0, keepdim=True)
            bands = torch.cat([image, missing.to(image)])
        resized = F.interpolate(bands[None], shape, mode='bilinear', antialias=True)[0]
        image = resized[: len(image)]
        if no_data is not None:
            image = image.masked_fill(resized[-1:] > _TOUCHED, no_data)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return image[:, top : top + size, left : left + size].contiguous()
