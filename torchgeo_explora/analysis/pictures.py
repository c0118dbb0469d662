"""Pictures of an analysis."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from torchgeo_explora.analysis.attention import truncated
from torchgeo_explora.analysis.blocks import BlockReport
from torchgeo_explora.analysis.suggestion import Suggestion

_PANELS = {
    'eigenvalue_mean': 'mean principal eigenvalue',
    'position_accuracy': 'patch to position, accuracy',
    'class_accuracy': 'patch to class, accuracy',
    'attention_entropy': 'attention entropy (1 is uniform)',
    'attention_distance': 'attention distance, patches',
}


def curves(models: Mapping[str, Sequence[BlockReport]]) -> Figure:
    """Return one panel per measure, block on the horizontal axis, a line per model."""
    known = [
        name
        for name in _PANELS
        if any(getattr(block, name) is not None for m in models.values() for block in m)
    ]
    figure = Figure(figsize=(3.4 * len(known), 3.2), layout='constrained')
    for axes, name in zip(figure.subplots(1, len(known)), known, strict=True):
        for label, (model, blocks) in zip('o^sv', models.items(), strict=False):
            numbers = [block.block + 1 for block in blocks]
            values = np.array([getattr(block, name) for block in blocks], float)
            axes.plot(numbers, values, marker=label, markersize=4, label=model)
            if name == 'eigenvalue_mean':
                spread = np.array([block.eigenvalue_sd for block in blocks])
                low = np.maximum(values - spread, 0)
                axes.fill_between(numbers, low, values + spread, alpha=0.15)
        axes.set_title(_PANELS[name], fontsize=9)
        axes.set_xlabel('block')
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


def evidence(blocks: Sequence[BlockReport], found: Suggestion) -> Figure:
    """Return a plot of the mean eigenvalues behind a suggestion, its block marked."""
    figure = Figure(figsize=(6, 3.4), layout='constrained')
    axes = figure.subplots()
    numbers = [block.block for block in blocks]
    values = [block.eigenvalue_mean for block in blocks]
    deep = [number in found.order for number in numbers]
    colours = ['tab:blue' if of_deep else 'lightgrey' for of_deep in deep]
    colours[found.unfreeze] = 'tab:orange'
    axes.bar(numbers, values, color=colours)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel('block, from 0 (grey: not in the deep half)')
    axes.set_ylabel('mean principal eigenvalue')
    axes.set_title(f'lowest of the deep half: block {found.unfreeze}', fontsize=10)
    return figure


def change_map(
    changes: Sequence[Mapping[str, float]], alike: Sequence[float] | None
) -> Figure:
    """Return relative changes as a heat map of layers by blocks, with CKA above.

    Args:
        changes: `block_changes`.
        alike: `linear_cka` of each block's output before and after; None to leave out.
    """
    layers = [name for name in changes[0] if name != 'all'] + ['all']
    values = np.array([[block.get(name, 0) for block in changes] for name in layers])
    figure = Figure(figsize=(0.5 * len(changes) + 2.5, 0.3 * len(layers) + 2.6))
    figure.set_layout_engine('constrained')
    top, axes = figure.subplots(2, 1, height_ratios=(1, 0.3 * len(layers)))
    numbers = range(1, len(changes) + 1)
    if alike is not None:
        top.plot(numbers, alike, marker='o', markersize=4)
    top.set_xlim(0.5, len(changes) + 0.5)
    top.set_ylim(0, 1.05)
    top.set_ylabel('CKA')
    top.grid(alpha=0.3)
    # On a linear scale, a block trained in full would leave the others black.
    shown = axes.imshow(
        np.log10(np.maximum(values, 1e-6)),
        aspect='auto',
        cmap='viridis',
        extent=(0.5, len(changes) + 0.5, len(layers) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.set_xticks(list(numbers), [str(number) for number in numbers], fontsize=8)
    axes.set_xlabel('block')
    figure.colorbar(shown, ax=axes, label='log10 of the relative change')
    return figure


def chosen_blocks(depth: int, count: int = 6) -> list[int]:
    """Return blocks evenly spaced over the depth, the last one included."""
    return sorted({round(i) for i in np.linspace(0, depth - 1, min(count, depth))})


def attention_maps(
    images: Tensor, models: Mapping[str, Sequence[BlockReport]], grid: Sequence[int]
) -> Figure:
    """Return the class token's attention for a few images, blocks and models.

    Args:
        images: (n, 3, H, W) in [0, 1].
        models: Reports by model.
        grid: Axes of the tokens, (G or T or 1, h, w); groups are averaged.
    """

    def drawn(block: BlockReport) -> Tensor:
        return truncated(block.cls_attention).reshape(-1, *grid).mean(1)

    return _rows(images, models, drawn)


def feature_maps(
    images: Tensor, models: Mapping[str, Sequence[BlockReport]], grid: Sequence[int]
) -> Figure:
    """Return patch features coloured by their three principal components.

    The components are computed over all images shown, for each block separately.
    """

    def drawn(block: BlockReport) -> Tensor:
        maps = block.maps.reshape(len(block.maps), *grid, -1).mean(1)  # (n, h, w, D)
        flat = maps.flatten(0, 2)
        flat = torch.nn.functional.layer_norm(flat, flat.shape[-1:])
        flat = flat - flat.mean(0)
        _, _, axes = torch.linalg.svd(flat, full_matrices=False)
        colours = flat @ axes[:3].T
        if colours.shape[1] < 3:
            colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
        low, high = (torch.quantile(colours, q, dim=0) for q in (0.02, 0.98))
        colours = ((colours - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        return colours.reshape(*maps.shape[:3], 3)

    return _rows(images, models, drawn)


def _rows(
    images: Tensor,
    models: Mapping[str, Sequence[BlockReport]],
    drawn: Callable[[BlockReport], Tensor],
) -> Figure:
    """Return images in rows, one row per model, with pictures of chosen blocks."""
    depth = len(next(iter(models.values())))
    chosen = chosen_blocks(depth)
    rows = len(images) * len(models)
    figure = Figure(
        figsize=(1.3 * (len(chosen) + 1) + 0.4, 1.3 * rows), layout='constrained'
    )
    grid = figure.subplots(rows, len(chosen) + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for column, number in enumerate(chosen, start=1):
        grid[0][column].set_title(f'block {number + 1}', fontsize=8)
        for offset, blocks in enumerate(models.values()):
            for index, picture in enumerate(drawn(blocks[number])):
                axes = grid[index * len(models) + offset][column]
                axes.imshow(picture.numpy(), cmap='magma')
    for row in range(rows):
        image = images[row // len(models)].permute(1, 2, 0).clamp(0, 1)
        grid[row][0].imshow(image.numpy())
        grid[row][0].set_ylabel(list(models)[row % len(models)], fontsize=8)
    return figure
