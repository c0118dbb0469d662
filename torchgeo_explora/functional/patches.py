"""From images to rows of pixels and back; gathering, scattering, replacing tokens."""

import math
from typing import Literal

import torch
from torch import Tensor

Order = Literal['hwc', 'chw']


def patchify(image: Tensor, patch_size: int, order: Order = 'hwc') -> Tensor:
    """Cut an image into square patches, row by row.

    Args:
        image: (B, C, H, W), any range.
        patch_size: Side of a patch in pixels, p; H and W are multiples of it.
        order: Order of the values in a patch. 'hwc' is MAE's (row, column, channel),
            'chw' is SatMAE's for spectral groups (channel, row, column).

    Returns:
        (B, N, P) with N = H / p * W / p and P = C * p * p.

    Raises:
        ValueError: If H or W is not a multiple of *patch_size*, or *order* is unknown.
    """
    batch, channels, height, width = image.shape
    p = patch_size
    if height % p or width % p:
        fit = tuple(max(p, round(side / p) * p) for side in (height, width))
        raise ValueError(
            f'image size {(height, width)} is not a multiple of patch_size {p}: '
            f'crop or pad to {fit}'
        )
    rows = image.reshape(batch, channels, height // p, p, width // p, p)
    # (B, C, h, p, w, p) -> (B, h, w, then the values of a patch)
    axes = (0, 2, 4, *_axes(order))
    return rows.permute(axes).reshape(batch, -1, channels * p * p)


def unpatchify(
    patches: Tensor,
    patch_size: int,
    order: Order = 'hwc',
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Join patches to an image again: the inverse of `patchify`.

    Args:
        patches: (B, N, P) with P = C * p * p.
        patch_size: Side of a patch in pixels, p.
        order: Order of the values in a patch, as in `patchify`.
        grid: Patches along the height and the width, (h, w); square if None.

    Returns:
        Image, (B, C, h * p, w * p).

    Raises:
        ValueError: If N patches do not fill *grid*, P is not a multiple of p * p, or
            *order* is unknown.
    """
    batch, count, values = patches.shape
    p = patch_size
    if grid is None:
        grid = (math.isqrt(count), math.isqrt(count))
    h, w = grid
    if h * w != count:
        raise ValueError(
            f'{count} patches do not fill a grid of {h} x {w}: name the *grid* (h, w)'
        )
    if values % (p * p):
        raise ValueError(
            f'{values} values per patch are not a multiple of {p} x {p} pixels: '
            'pass the *patch_size* that they were cut with'
        )
    inner = [p, p, p]
    axes = _axes(order)
    inner[axes.index(1)] = values // (p * p)
    rows = patches.reshape(batch, h, w, *inner)
    # Positions of the axes (B, C, h, p, w, p) among those of `rows`.
    back = (0, 3 + axes.index(1), 1, 3 + axes.index(3), 2, 3 + axes.index(5))
    return rows.permute(back).reshape(batch, -1, h * p, w * p)


def _axes(order: Order) -> tuple[int, int, int]:
    """Return the axes of a patch's values among those of (B, C, h, p, w, p)."""
    if order == 'hwc':
        return (3, 5, 1)
    if order == 'chw':
        return (1, 3, 5)
    raise ValueError(f"*order* is 'hwc' or 'chw', not {order!r}")


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Select tokens by index, in the order of the index.

    Args:
        tokens: (B, N, D), or (1, N, D) if all images share them.
        index: (B, K) integer indices into N.

    Returns:
        (B, K, D).
    """
    return torch.take_along_dim(tokens, index.unsqueeze(-1), dim=1)


def scatter_tokens(tokens: Tensor, index: Tensor, fill: Tensor, length: int) -> Tensor:
    """Put tokens at their indices, and a fill token everywhere else.

    This makes the input of MAE's decoder: visible tokens among mask tokens.

    Args:
        tokens: (B, K, D).
        index: (B, K) integer indices into N, each at most once per row.
        fill: The token at all other places: (D,), or anything that broadcasts to
            (B, N, D).
        length: Number of tokens N.

    Returns:
        (B, N, D), in the type of *tokens*.
    """
    batch, _, width = tokens.shape
    canvas = fill.to(tokens.dtype).expand(batch, length, width)
    return canvas.scatter(1, index.unsqueeze(-1).expand_as(tokens), tokens)


def replace_tokens(content: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """Replace hidden tokens with one token (iBOT, before positions are added).

    Args:
        content: (B, N, D).
        mask: (B, N) bool, True where the token is replaced.
        token: (D,), (1, D) or (1, 1, D).

    Returns:
        (B, N, D), in the type of *content*.

    Raises:
        ValueError: If the mask does not have the shape (B, N).
    """
    if mask.shape != content.shape[:2]:
        raise ValueError(
            f'mask {tuple(mask.shape)} does not fit content {tuple(content.shape)}: '
            'expected (B, N) for (B, N, D)'
        )
    return torch.where(mask.unsqueeze(-1), token.to(content.dtype), content)
