"""Position codes: sin-cos tables, and resizing of grids."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """Return the sines of all frequencies, then the cosines (MAE, SatMAE).

    Frequency i of dim / 2 is 10000 ** (-2 i / dim). The halves are not interleaved,
    unlike those of the original Transformer.

    Args:
        positions: (N,), any real numbers. Other shapes keep their axes.
        dim: Width of the code, even.

    Returns:
        (N, dim) float32, computed in float64.

    Raises:
        ValueError: If *dim* is odd.
    """
    if dim % 2:
        raise ValueError(f'*dim* {dim} is odd: each frequency has a sine and a cosine')
    steps = torch.arange(dim // 2, dtype=torch.float64, device=positions.device)
    angles = positions.double().unsqueeze(-1) * 10000 ** (-2 * steps / dim)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Return the sin-cos code of every cell of a grid, row by row (MAE).

    The first half of the channels encodes the column, the second half the row.

    Args:
        grid: Rows and columns, (h, w).
        dim: Width of the code, a multiple of 4.

    Returns:
        (h * w, dim) float32.

    Raises:
        ValueError: If *dim* is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(
            f'*dim* {dim} is not a multiple of 4: rows and columns each take half,'
            ' sines and cosines'
        )
    h, w = grid
    columns = sincos_1d(torch.arange(w), dim // 2).expand(h, -1, -1)
    rows = sincos_1d(torch.arange(h), dim // 2).unsqueeze(1).expand(-1, w, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def resize_grid(
    position: Tensor,
    grid: tuple[int, int],
    offset: float | None = None,
    antialias: bool = False,
    source: tuple[int, int] | None = None,
) -> Tensor:
    """Return a grid of position codes at another size (bicubic, in float32).

    With *offset*, the sampling step is m / (h + offset). This is DINOv2's rule with
    0.1, and differs from resizing to a given size. A grid that already has the wanted
    size is returned unchanged.

    Args:
        position: (1, m * m, D), row by row, without the entry of the cls token.
        grid: Rows and columns wanted, (h, w).
        offset: Added to the wanted size for the sampling step only; None for the plain
            rule.
        antialias: Whether to filter before sampling down, as timm does but DINOv2 and
            MAE do not.
        source: Rows and columns of *position* if it is not square.

    Returns:
        (1, h * w, D), in the type of *position*.

    Raises:
        ValueError: If the number of entries is not that of *source* or a square.
    """
    count = position.shape[1]
    if source is None:
        source = (math.isqrt(count), math.isqrt(count))
    if source[0] * source[1] != count:
        raise ValueError(
            f'{count} position codes are not a grid of {source[0]} x {source[1]}: '
            'leave out the cls token, or name the *source* grid (rows, columns)'
        )
    if tuple(source) == tuple(grid):
        return position
    table = position.float().mT.reshape(len(position), -1, *source)  # (1, D, m, m)
    if offset:
        # Pass the step itself: torch would derive another one from the sizes.
        scale = tuple((n + offset) / m for n, m in zip(grid, source, strict=True))
        table = F.interpolate(
            table, scale_factor=scale, mode='bicubic', antialias=antialias
        )
    else:
        table = F.interpolate(table, size=grid, mode='bicubic', antialias=antialias)
    return table.flatten(2).mT.to(position.dtype)  # (1, D, h, w) -> (1, h * w, D)
