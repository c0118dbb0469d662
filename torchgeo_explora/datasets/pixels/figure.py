"""How samples are plotted."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchgeo.datasets import RGBBandsMissingError

# Names that files have for red, green and blue.
_TRUE_COLOUR = (('red', 'green', 'blue'), ('B04', 'B03', 'B02'), ('B4', 'B3', 'B2'))


def colour_indices(bands: Sequence[str], channels: int) -> list[int]:
    """Return the indices of red, green and blue, or else of the first three bands.

    Args:
        bands: Names of the bands; empty if they are not known.
        channels: Number of bands; if fewer than three, the last one is repeated.
    """
    for names in _TRUE_COLOUR:
        if set(names) <= set(bands):
            return [bands.index(name) for name in names]
    return [min(index, channels - 1) for index in range(3)]


def true_colour(unit: Tensor, bands: Sequence[str]) -> Tensor:
    """Return red, green and blue if bands are named so, else the first three.

    Args:
        unit: (..., C, H, W) in [0, 1].
        bands: Names of the bands; empty if they are not known.

    Returns:
        (..., 3, H, W), or the first band as (..., 1, H, W) if there are fewer.
    """
    if unit.shape[-3] < 3:
        return unit[..., :1, :, :]
    return unit[..., colour_indices(bands, unit.shape[-3]), :, :]


def pick_bands(image: Tensor, bands: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Return some bands of an image, in the given order.

    Args:
        image: (..., C, H, W).
        bands: Names of its C bands.
        wanted: Names of red, green and blue.

    Raises:
        RGBBandsMissingError: If one of them is not there.
    """
    if not set(wanted) <= set(bands):
        raise RGBBandsMissingError
    return image.index_select(-3, torch.tensor([bands.index(name) for name in wanted]))


def plot_image(
    unit: Tensor,
    sample: dict[str, Any],
    classes: Sequence[str] = (),
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """Plot one image, or the images of a series side by side.

    Args:
        unit: True colour in [0, 1], (3, H, W) or (T, 3, H, W), or one band of gray.
        sample: `label` and `prediction` become a title if they are single classes,
            `bbox_xyxy` (N, 4) rectangles.
        classes: Class names.
        show_titles: Whether to write the classes.
        suptitle: Title of the figure.

    Returns:
        The figure.
    """
    pictures = unit[None] if unit.ndim == 3 else unit
    figure, row = plt.subplots(
        1, len(pictures), figsize=(4 * len(pictures), 4), squeeze=False
    )
    for axes, picture in zip(row[0], pictures, strict=True):
        # (C, H, W) -> (H, W, C), or (H, W) of a single band
        pixels = picture.permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy()
        axes.imshow(pixels, cmap='gray')
        axes.axis('off')
        for x, y, right, bottom in sample.get('bbox_xyxy', ()):
            axes.add_patch(
                Rectangle(
                    (x.item(), y.item()),
                    (right - x).item(),
                    (bottom - y).item(),
                    fill=False,
                    edgecolor='red',
                )
            )
    if show_titles and classes:
        lines = [
            f'{key.capitalize()}: {classes[int(sample[key])]}'
            for key in ('label', 'prediction')
            if key in sample and sample[key].ndim == 0
        ]
        row[0][0].set_title('\n'.join(lines))
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure
