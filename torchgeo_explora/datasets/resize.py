"""Images of any shape brought to a square."""

from torch import Tensor
from torch.nn import functional as F


def fit_square(image: Tensor, size: int) -> Tensor:
    """Bring the shorter side to *size* and cut out the centre.

    Bilinear with antialiasing, which never leaves the range of the values.

    Args:
        image: (C, H, W).
        size: Side of the result in pixels.

    Returns:
        (C, size, size).
    """
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    if shape != (height, width):
        image = F.interpolate(image[None], shape, mode='bilinear', antialias=True)[0]
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return image[:, top : top + size, left : left + size].contiguous()
