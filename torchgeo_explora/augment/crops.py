"""Random crops: resized in one antialiased bicubic pass, or with their masks."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crops(
    image: Tensor, views: int, size: int, scale: tuple[float, float]
) -> Tensor:
    """Return random crops of each image, mirrored half of the time.

    Args:
        image: (B, C, H, W), float32 in [0, 1].
        views: V, crops of each image.
        size: S, side of a crop in pixels after resizing.
        scale: Range of a crop's share of the image's area.

    Returns:
        (V, B, C, S, S) in [0, 1].
    """
    return resized_crops(image, *draw_crops(image, views, scale), size)


def draw_crops(
    image: Tensor, views: int, scale: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Draw random crops of each image, mirrored half of the time.

    Args:
        image: (B, C, H, W).
        views: V, crops of each image.
        scale: Range of a crop's share of the image's area.

    Returns:
        Boxes (V, B, 4) and whether each is mirrored, (V, B), for `resized_crops`.
    """
    images, _, height, width = image.shape
    boxes = crop_boxes(views * images, (height, width), scale)
    return boxes.view(views, images, 4), torch.rand(views, images) < 0.5


def quarter_turns(crops: Tensor, turns: Tensor | None = None) -> Tensor:
    """Turn each crop by 0, 90, 180 or 270 degrees, with equal chances, in place.

    With the mirroring of `random_crops`, this gives all eight symmetries of a square.
    Random numbers come from torch's CPU generator.

    Args:
        crops: (V, B, C, S, S).
        turns: (V * B,) quarters of a turn, from 0 to 3, on the CPU; drawn if None.
    """
    flat = crops.flatten(0, 1)
    if turns is None:
        turns = torch.randint(4, (len(flat),))
    for count in (1, 2, 3):
        rows = (turns == count).nonzero().squeeze(1).to(crops.device)
        flat[rows] = flat[rows].rot90(count, (-2, -1))
    return crops


def random_patches(
    image: Tensor, mask: Tensor, size: int, fill: int
) -> tuple[Tensor, Tensor]:
    """Cut a random patch out of each image and its mask, rotated and mirrored.

    Smaller images are padded with zeros. Random numbers come from torch's CPU
    generator.

    Args:
        image: (B, C, H, W).
        mask: (B, H, W).
        size: Side of the patches in pixels.
        fill: Value of the mask where the image is padded.

    Returns:
        (B, C, size, size) and (B, size, size).
    """
    height, width = image.shape[-2:]
    right, below = max(0, size - width), max(0, size - height)
    image = F.pad(image, (0, right, 0, below))
    mask = F.pad(mask, (0, right, 0, below), value=fill)
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


def crop_boxes(
    count: int,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw boxes from the distribution of torchvision's `RandomResizedCrop`.

    Ten candidates have a uniform area and a uniform logarithm of the aspect ratio. The
    first one that fits is placed uniformly; if none fits, the box is the largest one
    with an allowed aspect ratio, in the centre. Random numbers come from torch's CPU
    generator.

    Args:
        count: N, number of boxes.
        image_size: Height and width of the image in pixels.
        scale: Range of the box's share of the image's area.
        ratio: Range of width over height.

    Returns:
        Top, left, height, width in pixels, (N, 4), int64, on the CPU.
    """
    height, width = image_size
    # Double precision: `floor` of a product never reaches its upper end.
    draws = torch.rand(count, 22, dtype=torch.float64)
    area = (scale[0] + draws[:, :10] * (scale[1] - scale[0])) * height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + draws[:, 10:20] * (high - low)).exp()  # (N, 10)
    heights, widths = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()

    # An eleventh candidate that always fits.
    largest = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    heights, widths = (
        torch.cat([sides, sides.new_full((count, 1), max(side, 1))], 1)
        for sides, side in zip((heights, widths), largest, strict=True)
    )
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.byte().argmax(1, keepdim=True)
    heights, widths = heights.gather(1, first), widths.gather(1, first)
    place = torch.where(first == 10, 0.5, draws[:, 20:])
    centred = (first == 10).double()  # (N, 1): the middle is (H - h) // 2
    top = (place[:, :1] * (height - heights + 1 - centred)).floor()
    left = (place[:, 1:] * (width - widths + 1 - centred)).floor()
    return torch.cat([top, left, heights, widths], 1).long()


def resized_crops(image: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Return the boxes of each image, resized to a square and perhaps mirrored.

    Equal to cropping, then resizing as PIL does: bicubic (a = -0.5), with the kernel
    widened when it shrinks. Bicubic overshoot is clamped to [0, 1].

    An accelerator computes two matrix products per view, since separate boxes would
    need a kernel each. A CPU resizes each box, which reads four pixels per output where
    a product reads the whole row: four times as fast when measured.

    Args:
        image: (B, C, H, W), float32 in [0, 1].
        boxes: (V, B, 4), top, left, height, width: V boxes of each image.
        mirrored: (V, B) bool, True where left and right are swapped.
        size: S, side of the result in pixels.

    Returns:
        (V, B, C, S, S) in [0, 1].
    """
    resize = _one_by_one if image.device.type == 'cpu' else _by_products
    return resize(image, boxes, mirrored, size).clamp_(0, 1)


def _one_by_one(image: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    views, images = mirrored.shape
    crops = image.new_empty(views * images, image.shape[1], size, size)
    flips = mirrored.flatten().tolist()
    for n, (top, left, height, width) in enumerate(boxes.flatten(0, 1).tolist()):
        crop = F.interpolate(
            image[n % images, None, :, top : top + height, left : left + width],
            size=(size, size),
            mode='bicubic',
            antialias=True,
        )
        crops[n] = crop[0].flip(-1) if flips[n] else crop[0]
    return crops.unflatten(0, (views, images))


def _by_products(image: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    images, channels, height, width = image.shape
    crops = image.new_empty(len(boxes), images, channels, size, size)
    for view, box, mirror in zip(crops, boxes, mirrored, strict=True):
        top, left, tall, wide = box.unbind(-1)
        rows = _resampling(top, tall, size, height, image.device)  # (B, S, H)
        columns = _resampling(left, wide, size, width, image.device)  # (B, S, W)
        flips = mirror.to(image.device)[:, None, None]
        columns = torch.where(flips, columns.flip(1), columns)
        # (B, C, H, W) -> (B, C, H, S) -> (B, C, S, S)
        view[:] = rows[:, None] @ (image @ columns[:, None].mT)
    return crops


def _resampling(
    start: Tensor, length: Tensor, size: int, extent: int, device: torch.device
) -> Tensor:
    """Return the bicubic weights of the pixels for each sample, (B, S, extent)."""
    step = length.double() / size
    centre = start[:, None] + (torch.arange(size) + 0.5) * step[:, None]  # in pixels
    # Integer and fraction separately: float32 then keeps small distances exact.
    whole = centre.floor()
    rest = (0.5 - (centre - whole)).float().to(device)
    pixel = torch.arange(extent, device=device)
    distance = pixel - whole.float().to(device)[..., None] + rest[..., None]
    x = distance.abs() / step.clamp(min=1).float().to(device)[:, None, None]
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    start, end = start.to(device)[:, None], (start + length).to(device)[:, None]
    inside = ((pixel >= start) & (pixel < end))[:, None]  # (B, 1, extent)
    weights = torch.where(x < 1, near, far) * (inside & (x < 2))
    return weights / weights.sum(-1, keepdim=True)
