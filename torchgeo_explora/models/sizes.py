"""Image sizes in pixels."""

from collections.abc import Sequence


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
