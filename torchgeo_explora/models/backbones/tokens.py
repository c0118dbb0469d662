"""Tokens of a batch, the features made from them, and checks of image sizes."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from torch import Tensor, cat

#: The feature of a whole image: the class token, the mean of the patch tokens, or both
#: joined.
type Pooling = Literal['cls', 'mean', 'both']

#: All poolings.
POOLINGS: tuple[str, ...] = get_args(Pooling.__value__)


class Tokens(NamedTuple):
    """Patch tokens of a batch, with content and position kept separate."""

    content: Tensor
    """(B, N, D) patch embeddings without position."""
    position: Tensor
    """(1 or B, N, P), for `encode`; only the backbone knows what it means."""
    grid: tuple[int, int, int]
    """(groups or times or 1, h, w); N is the product."""


class Features(NamedTuple):
    """Output of a backbone after the final norm, without registers."""

    cls: Tensor
    """(B, D)."""
    patch: Tensor
    """(B, K, D), in the order of the encoded tokens; (M, D) if M were *wanted*."""

    def pooled(self, pooling: str) -> Tensor:
        """Return one feature for each image, (B, D), or (B, 2 D) for 'both'.

        Args:
            pooling: One of `POOLINGS`.

        Raises:
            ValueError: If *pooling* is not one of these.
        """
        if pooling not in POOLINGS:
            raise ValueError(f'*pooling* is {pooling!r}: choose from {POOLINGS}')
        if pooling == 'cls':
            return self.cls
        mean = self.patch.mean(1)
        return mean if pooling == 'mean' else cat([self.cls, mean], dim=-1)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size given as one number or as both."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def check_size(size: tuple[int, int], patch_size: int) -> None:
    """Raise ValueError unless patches fill an image of this height and width."""
    # Whole numbers: an export for any image size follows this test symbolically.
    if any(side % patch_size for side in size) or min(size) < patch_size:
        fit = tuple(max(round(side / patch_size), 1) * patch_size for side in size)
        raise ValueError(
            f'image size {tuple(size)} is not a multiple of patch_size {patch_size}:'
            f' crop or pad to {fit}'
        )
