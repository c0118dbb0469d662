"""Masks that hide tokens at random (MAE) or in blocks (iBOT)."""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

# Limits for one block (BEiT), with DINOv2's values.
_SMALLEST = 4
_ASPECT = math.log(0.3)
_ATTEMPTS = 10


def random_mask(noise: Tensor, ratio: float) -> Tensor:
    """Hide the tokens with the largest noise (MAE, section 3).

    Args:
        noise: (B, N), usually uniform in [0, 1); only its order matters.
        ratio: Share of the tokens to hide, above 0 and below 1. In each row,
            int(N * (1 - ratio)) tokens stay visible.

    Returns:
        (B, N) bool, True where the token is hidden.

    Raises:
        ValueError: If *ratio* is not between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(
            f'*ratio* must lie between 0 and 1, both excluded, not {ratio}'
        )
    keep = int(noise.shape[1] * (1 - ratio))
    # A stable order breaks ties the same way everywhere.
    visible = noise.argsort(dim=1, stable=True)[:, :keep]
    mask = torch.ones_like(noise, dtype=torch.bool)
    return mask.scatter_(1, visible, False)


def visible_indices(mask: Tensor) -> Tensor:
    """Return the indices of the visible tokens, in ascending order.

    Args:
        mask: (B, N) bool, True where the token is hidden; all rows hide equally many.

    Returns:
        (B, K) int64 indices into N.

    Raises:
        ValueError: If the rows hide different numbers of tokens.
    """
    visible = ~mask
    counts = visible.sum(1)
    if (counts != counts[:1]).any():
        raise ValueError(
            'every row of the mask must hide equally many tokens, but these leave '
            f'{counts.tolist()} visible: encode such rows one by one'
        )
    index = visible.nonzero()[:, 1]
    return index.view(len(mask), len(index) // max(1, len(mask)))


def block_masks(
    crops: int,
    grid: tuple[int, int],
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    generator: Generator | None = None,
) -> Tensor:
    """Hide rectangles of tokens in some of the crops (BEiT; DINOv2's collation).

    int(crops * probability) crops are masked. The range *ratio* is divided into as many
    equal parts, and the share of hidden tokens of each crop is drawn from one of them,
    so every batch covers the range. Blocks of log-uniform aspect ratio in
    [0.3, 1 / 0.3] are added until the share is reached or no further block fits; a mask
    never hides more than its share. A block covers at most half of the tokens, and
    never a whole row or column.

    The random numbers differ from those of the reference, which uses Python's
    generator, but have the same distribution.

    Args:
        crops: Number of crops C, masked or not.
        grid: Tokens in a column and in a row, (h, w).
        probability: Share of the crops that are masked, in [0, 1].
        ratio: Smallest and largest share of hidden tokens in a masked crop, in [0, 1].
        generator: CPU generator; torch's default generator if None.

    Returns:
        (C, h * w) bool on the CPU, True where the token is hidden, rows in random
        order.

    Raises:
        ValueError: If *probability* or *ratio* leaves [0, 1], or *ratio* descends.
    """
    low, high = ratio
    if not 0 <= probability <= 1:
        raise ValueError(f'*probability* must lie in [0, 1], not {probability}')
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f'*ratio* must be (low, high) with 0 <= low <= high <= 1, not {ratio}'
        )
    tokens = grid[0] * grid[1]
    masked = int(crops * probability)
    uniform = _uniforms(generator)
    masks = []
    for part in range(masked):
        share = low + (high - low) * (part + next(uniform)) / masked
        masks.append(_blocks(int(tokens * share), grid, uniform))
    masks += [0] * (crops - masked)
    order = torch.randperm(crops, generator=generator, device='cpu')
    return _unpack(masks, tokens)[order]


def _uniforms(generator: Generator | None) -> Iterator[float]:
    """Yield numbers in [0, 1), drawn in bulk since each call is slow."""
    while True:
        yield from torch.rand(4096, generator=generator, device='cpu').tolist()


def _blocks(target: int, grid: tuple[int, int], uniform: Iterator[float]) -> int:
    """Return at most *target* hidden tokens, as the bits of one integer.

    Bit row * w + column is set where the token is hidden. A mask takes tens of attempts
    with a few operations each, for which integers are much faster than tensors.
    """
    hidden = 0
    largest = grid[0] * grid[1] // 2
    while (count := hidden.bit_count()) < target:
        block = _block(hidden, min(target - count, largest), grid, uniform)
        if not block:
            break
        hidden |= block
    return hidden


def _block(
    hidden: int, budget: int, grid: tuple[int, int], uniform: Iterator[float]
) -> int:
    """Return a block that hides 1 to *budget* more tokens, or 0 if none was found."""
    height, width = grid
    for _ in range(_ATTEMPTS):
        # If the budget is below the smallest area, the ends swap, as in the reference.
        area = _SMALLEST + (budget - _SMALLEST) * next(uniform)
        aspect = math.exp(_ASPECT * (1 - 2 * next(uniform)))
        h = round(math.sqrt(area * aspect))
        w = round(math.sqrt(area / aspect))
        top, left = next(uniform), next(uniform)
        if not (0 < h < height and 0 < w < width):
            continue
        corner = int(top * (height - h + 1)) * width + int(left * (width - w + 1))
        # A row of w ones, repeated h times with a stride of one grid row.
        rows = ((1 << h * width) - 1) // ((1 << width) - 1)
        block = ((1 << w) - 1) * rows << corner
        if 0 < (block & ~hidden).bit_count() <= budget:
            return block
    return 0


def _unpack(masks: list[int], tokens: int) -> Tensor:
    """Return the lowest *tokens* bits of each integer, (C, tokens) bool."""
    size = -(-tokens // 8)
    packed = b''.join(mask.to_bytes(size, 'little') for mask in masks)
    octets = torch.tensor(list(packed), dtype=torch.uint8, device='cpu')
    bits = octets.view(len(masks), size, 1) >> torch.arange(8, device='cpu') & 1
    return bits.flatten(1)[:, :tokens].bool()
