"""Large images, processed in overlapping windows."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Return the starts of windows that cover an axis, at multiples of *stride*.

    The last window may reach past the end.

    Args:
        length: Length of the axis, at least 1.
        size: Size of a window.
        stride: Distance from one window to the next, at most *size*.

    Raises:
        ValueError: If windows with this stride would leave gaps.
    """
    if not 0 < stride <= size:
        raise ValueError(f'*stride* {stride} must be from 1 to the window size {size}')
    return [i * stride for i in range(max(0, math.ceil((length - size) / stride)) + 1)]


def blend_weight(size: int) -> Tensor:
    """Return the weight of each value in a window, (size, size), above 0.

    It falls linearly from the middle to the edges, where a model has least context.
    """
    place = torch.arange(size)
    line = torch.minimum(place, size - 1 - place) + 1.0
    line = line / line.max()
    return line[:, None] * line


def slide(
    image: Tensor,
    size: int,
    stride: int,
    score: Callable[[Tensor], Tensor],
    cell: int = 1,
    batch: int = 16,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the scores of a large image, blended from the scores of windows.

    Windows that reach past the right or lower edge are filled by repeating its last
    pixels.

    Args:
        image: (B, C, H, W).
        size: Side of a window in pixels, a multiple of *cell*.
        stride: Distance from one window to the next, a multiple of *cell*.
        score: Maps windows (b, C, size, size) to scores (b, K, size / cell, ...).
        cell: Pixels along each side of the square that one score covers.
        batch: Number of windows that are scored at once.
        valid: (H, W) bool, False where there is no data. Windows without any data are
            not scored.

    Returns:
        (B, K, ceil(H / cell), ceil(W / cell)); NaN where no window was scored. Empty,
        with K = 0, if none was.

    Raises:
        ValueError: If a size does not fit the cell.
    """
    if size % cell or stride % cell:
        raise ValueError(
            f'window {size} and stride {stride} must be multiples of {cell} pixels'
        )
    height, width = image.shape[-2:]
    tops, lefts = (window_starts(side, size, stride) for side in (height, width))
    if valid is not None and valid.all():
        valid = None
    corners = [
        (top, left)
        for top in tops
        for left in lefts
        if valid is None or valid[top : top + size, left : left + size].any()
    ]
    rows, columns = (math.ceil(side / cell) for side in (height, width))
    if not corners:
        return image.new_zeros(len(image), 0, rows, columns)
    side = size // cell
    weight = blend_weight(side).to(image.device)
    # The last windows may reach past the end.
    total = image.new_zeros([(starts[-1] + size) // cell for starts in (tops, lefts)])
    blended: Tensor | None = None
    at_once = max(1, batch // len(image))
    for first in range(0, len(corners), at_once):
        chosen = corners[first : first + at_once]
        windows = [_window(image, corner, size) for corner in chosen]
        scores = score(torch.cat(windows)).float() * weight
        if blended is None:
            blended = scores.new_zeros(len(image), scores.shape[1], *total.shape)
        for of_window, (top, left) in zip(
            scores.split(len(image)), chosen, strict=True
        ):
            place = (
                slice(top // cell, top // cell + side),
                slice(left // cell, left // cell + side),
            )
            blended[..., *place] += of_window
            total[place] += weight
    assert blended is not None
    total = total[:rows, :columns]
    return (blended[..., :rows, :columns] / total).masked_fill(total == 0, torch.nan)


def _window(image: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    """Return a window (B, C, size, size); past the end, the last pixels repeat."""
    top, left = corner
    window = image[..., top : top + size, left : left + size]
    below, right = (size - side for side in window.shape[-2:])
    if below or right:
        window = pad(window, (0, right, 0, below), mode='replicate')
    return window
