"""8-bit pictures, cropped and resized while they are decoded."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from torchgeo_explora.datasets.pixels.image_file import naming, open_limited
from torchgeo_explora.datasets.pixels.raster_file import refuse_pipe

#: (left, top, right, bottom) in pixels, right and bottom not included.
type Region = tuple[float, float, float, float]


@contextmanager
def open_picture(path: str, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open a picture; its pixels are decoded when they are needed.

    Args:
        path: The file.
        max_pixels: Largest number of pixels; Pillow's limit, 179 million, if None.

    Raises:
        UnreadableImageError: If the file is missing, truncated, or not a picture.
    """
    with naming(path):
        refuse_pipe(path)
        with open_limited(path, max_pixels) as image:
            yield image


def cut(
    image: Image.Image, region: Region, size: tuple[int, int] | None = None
) -> Tensor:
    """Return a region of a picture, resized.

    A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, but still
    at twice the wanted size or more, so that resizing causes no aliasing.

    Args:
        image: An open picture of any mode.
        region: What to cut out; in whole pixels if it is not resized.
        size: (H, W) of the result; None keeps the pixels.

    Returns:
        (3, H, W) float32, 0 to 255; bilinear with antialiasing.
    """
    left, top, right, bottom = region
    if size is None:
        pixels = image.convert('RGB').crop(
            (int(left), int(top), int(right), int(bottom))
        )
        return _to_tensor(np.asarray(pixels))
    width, height = image.size
    scale = (2 * size[1] / (right - left), 2 * size[0] / (bottom - top))
    image.draft(None, (int(width * scale[0]) + 1, int(height * scale[1]) + 1))
    across, down = image.width / width, image.height / height
    left, right, top, bottom = left * across, right * across, top * down, bottom * down
    # Whole pixels first: what is outside the region must not bleed into it.
    x, y = math.floor(left), math.floor(top)
    part = image.convert('RGB').crop((x, y, math.ceil(right), math.ceil(bottom)))
    rest = (left - x, top - y, right - x, bottom - y)
    pixels = part.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=rest)
    return _to_tensor(np.asarray(pixels))


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return (H, W, C) bytes as (C, H, W) float32, 0 to 255."""
    # All in NumPy: PyTorch's threads gain nothing here and compete in workers.
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32))


def middle_square(width: int, height: int) -> Region:
    """Return the largest centred square of a picture."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def move_boxes(boxes: Tensor, region: Region, size: tuple[int, int]) -> Tensor:
    """Return boxes in pixels of a region that was cut out and resized.

    Args:
        boxes: (N, 4) float32, x and y of both corners, in pixels of the whole picture.
        region: What was cut out.
        size: (H, W) it was resized to.

    Returns:
        (M, 4) float32, clipped to the region; boxes outside it are left out.
    """
    left, top, right, bottom = region
    scale = torch.tensor([size[1] / (right - left), size[0] / (bottom - top)] * 2)
    limit = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
    moved = (boxes - torch.tensor([left, top] * 2)) * scale
    moved = moved.clamp(min=0).minimum(limit)
    return moved[(moved[:, 2:] > moved[:, :2]).all(1)]


# A resized pixel has no data if at least this share of it comes from pixels without.
_TOUCHED = 1e-4


def fit_square(image: Tensor, size: int, no_data: float | None = None) -> Tensor:
    """Bring the shorter side to *size* and cut out the centre.

    Bilinear with antialiasing; no band leaves the range of its values.

    Args:
        image: (C, H, W), finite.
        size: Side of the result in pixels.
        no_data: Value of pixels without data, in all bands. Pixels of the result that
            such pixels contribute to have this value too.

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
        # Rounding errors can exceed the values by a few millionths.
        image = resized[: len(image)].clamp(
            image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
        )
        if no_data is not None:
            image = image.masked_fill(resized[-1:] > _TOUCHED, no_data)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return image[:, top : top + size, left : left + size].contiguous()
