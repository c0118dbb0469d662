"""How much of its surroundings an fMoW box takes along."""

from torchgeo_explora.datasets.pixels.picture import Region

# The smaller an object in its image, the more context: (least share of the image's
# side, context as a multiple of the box's side).
_CONTEXT = ((0.5, 0.15), (0.4, 0.2), (0.3, 0.3), (0.2, 0.5), (0.1, 1.0), (0.0, 2.0))


def context_region(
    box: tuple[int, int, int, int], width: int, height: int
) -> Region | None:
    """Return a box with the context that the fMoW baseline gives it.

    Each side is padded by half of its context, rounded down, and clipped to the image.
    The baseline divides the box's width by the image's height and its height by the
    image's width; here each is divided by its own.

    Args:
        box: (x, y, w, h) in pixels.
        width: Of the image.
        height: Of the image.

    Returns:
        The region in whole pixels, or None if nothing of it lies in the image.
    """
    x, y, box_width, box_height = box
    across = _padding(box_width, width)
    down = _padding(box_height, height)
    left, right = max(x - across, 0), min(x + box_width + across, width)
    top, bottom = max(y - down, 0), min(y + box_height + down, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _padding(side: int, whole: int) -> int:
    share = side / whole
    return int(side * next(times for least, times in _CONTEXT if share >= least) / 2)
