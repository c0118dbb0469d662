"""What each block of a backbone knows: measured on a sample of images."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.analysis.attention import Attended, AttentionRecorder
from torchgeo_explora.analysis.linear_probe import linear_accuracy
from torchgeo_explora.analysis.spectra import principal_eigenvalues
from torchgeo_explora.models.backbones.backbone import Backbone

#: Patch tokens kept per image, for probes and for comparing two models.
TOKENS = 64
#: Number of images whose attention and feature maps are kept for pictures.
SHOWN = 4


@dataclass
class BlockReport:
    """What one block does with a sample of images.

    Attributes:
        block: Number of the block, from 0.
        eigenvalue_mean: Mean of the 10 largest eigenvalues of an image's patch tokens,
            over eigenvalues and images (`principal_eigenvalues`).
        eigenvalue_sd: Their standard deviation.
        position_accuracy: Share of patch tokens of held-out images whose place a linear
            classifier finds.
        class_accuracy: Share of them whose image's class it finds; None without labels.
        attention_entropy: Entropy of a patch's attention to the patches, in [0, 1]; 1
            is uniform.
        attention_distance: Mean distance to what a patch attends to, in patches.
        tokens: (n, D), kept patch tokens, the same ones in every block and model.
        cls_attention: (SHOWN, N), attention of the class token.
        maps: (SHOWN, N, D), patch tokens of the images shown.
    """

    block: int
    eigenvalue_mean: float
    eigenvalue_sd: float
    position_accuracy: float
    class_accuracy: float | None
    attention_entropy: float
    attention_distance: float
    tokens: Tensor = field(repr=False)
    cls_attention: Tensor = field(repr=False)
    maps: Tensor = field(repr=False)

    def row(self) -> dict[str, float | int | None]:
        """Return the numbers."""
        hidden = ('tokens', 'cls_attention', 'maps')
        return {name: v for name, v in vars(self).items() if name not in hidden}


def block_outputs(
    backbone: Backbone, image: Tensor, **metadata: Tensor
) -> Iterator[tuple[tuple[int, int, int], Tensor, Attended]]:
    """Yield the grid, the patch tokens and the attention of each block in turn.

    Tokens (B, N, D) are taken between blocks, without the final norm, whose weights are
    meant for the last block.

    Args:
        backbone: Any backbone, in evaluation mode.
        image: Normalised pixels, (B, C, H, W).
        **metadata: As for `Backbone.embed`.
    """
    content, position, grid = backbone.embed(image, **metadata)
    x, context = backbone.enter(content, position)
    for block in backbone.blocks:
        with AttentionRecorder(grid) as recorder:
            x = block(x, **context)
        yield grid, x[:, x.shape[1] - content.shape[1] :], recorder.found[-1]


@torch.no_grad()
def analyze_blocks(
    backbone: Backbone,
    batches: Iterable[Mapping[str, Any]],
    eigenvalues: int = 10,
    seed: int = 0,
) -> list[BlockReport]:
    """Measure every block on a sample.

    Args:
        backbone: Plain or adapted; its mode is restored.
        batches: Each has `image`, normalised pixels (B, C, H, W) of one size, and
            perhaps `label`, (B,) class numbers (other kinds of labels are ignored), and
            whatever else `Backbone.embed` takes. Every second image is used to train
            the probes.
        eigenvalues: Number of principal eigenvalues.
        seed: Seed for drawing the patch tokens that are kept.

    Raises:
        ValueError: If there are fewer than 2 images, or sizes differ.
    """
    device = next(backbone.parameters()).device
    parts: list[dict[str, list[Any]]] = [
        {name: [] for name in ('values', 'kept', 'entropy', 'distance', 'cls', 'maps')}
        for _ in backbone.blocks
    ]
    places: list[Tensor] = []
    labels: list[Tensor] = []
    grid: tuple[int, int, int] | None = None
    generator = torch.Generator().manual_seed(seed)
    mode = backbone.training
    backbone.eval()
    try:
        for batch in batches:
            image = batch['image'].to(device)
            metadata = {
                key: value.to(device)
                for key, value in batch.items()
                if key not in ('image', 'label') and isinstance(value, Tensor)
            }
            chosen: Tensor | None = None
            for part, (found, tokens, attended) in zip(
                parts, block_outputs(backbone, image, **metadata), strict=True
            ):
                if grid not in (None, found):
                    raise ValueError(
                        f'images of {found} and of {grid} patches: resize them to one'
                        ' size'
                    )
                grid = found
                if chosen is None:
                    count = tokens.shape[1]
                    noise = torch.rand(len(tokens), count, generator=generator)
                    chosen = noise.argsort(1)[:, : min(TOKENS, count)]
                    places.append(chosen)
                index = chosen.to(device)[..., None].expand(-1, -1, tokens.shape[2])
                shown = max(0, SHOWN - sum(map(len, part['maps'])))
                part['values'].append(principal_eigenvalues(tokens, eigenvalues).cpu())
                part['kept'].append(tokens.gather(1, index).float().cpu())
                part['entropy'].append(attended.entropy.cpu())
                part['distance'].append(attended.distance.cpu())
                part['cls'].append(attended.cls[:shown].cpu())
                part['maps'].append(tokens[:shown].float().cpu())
            label = batch.get('label')
            # Neither several labels of an image nor a measured value is a class.
            if (
                isinstance(label, Tensor)
                and label.ndim == 1
                and not label.is_floating_point()
            ):
                labels.append(label.cpu())
    finally:
        backbone.train(mode)
    if grid is None or sum(map(len, places)) < 2:
        raise ValueError('an analysis needs at least 2 images')
    # Groups and times of one place have one position.
    where = torch.cat(places) % (grid[1] * grid[2])
    classes = (
        torch.cat(labels) if labels and sum(map(len, labels)) == len(where) else None
    )
    return [
        _report(number, part, where, grid[1] * grid[2], classes)
        for number, part in enumerate(parts)
    ]


def _report(
    number: int,
    part: Mapping[str, list[Any]],
    where: Tensor,
    positions: int,
    classes: Tensor | None,
) -> BlockReport:
    """Return the report of one block from its collected values."""
    joined = {name: torch.cat(values) for name, values in part.items()}
    kept, values = joined['kept'], joined['values']  # (B, n, D), (B, count)

    def probed(target: Tensor, count: int) -> float:
        return linear_accuracy(
            kept[::2].flatten(0, 1),
            target[::2].flatten(),
            kept[1::2].flatten(0, 1),
            target[1::2].flatten(),
            count,
        )

    found = None
    if classes is not None:
        # Numbered without gaps, whatever the sample holds.
        names, numbers = classes.unique(return_inverse=True)
        if len(names) > 1:
            found = probed(numbers[:, None].expand_as(where), len(names))
    return BlockReport(
        number,
        values.mean().item(),
        values.std(correction=0).item(),
        probed(where, positions),
        found,
        joined['entropy'].mean().item(),
        joined['distance'].mean().item(),
        kept.flatten(0, 1),
        joined['cls'],
        joined['maps'],
    )
