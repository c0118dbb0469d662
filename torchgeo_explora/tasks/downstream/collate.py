"""Images of different sizes in one batch."""

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

type Collate = Callable[[list[dict[str, Any]]], Any]


class ExplainSizes:
    """A collate function that says why images of mixed sizes cannot be stacked.

    Args:
        collate: The data module's own.
    """

    def __init__(self, collate: Collate) -> None:
        """Wrap *collate*."""
        self.collate = collate

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        """Return a batch.

        Raises:
            ValueError: If the images have mixed sizes.
        """
        sizes = {tuple(s['image'].shape) for s in samples if 'image' in s}
        if len(sizes) > 1:
            raise ValueError(
                f'a batch holds images of mixed sizes, {sorted(sizes)[:4]}: give the'
                ' data set a transform that resizes them, or take'
                ' torchgeo_explora.datamodules.ImageFolderDataModule with *size*'
            )
        return self.collate(samples)


class PadSizes:
    """A collate function that first pads images at the right and at the bottom.

    Args:
        collate: The data module's own.
        fill: Value of the padded part, by name of the tensor, (..., H, W).
    """

    def __init__(self, collate: Collate, fill: dict[str, float]) -> None:
        """Wrap *collate*."""
        self.collate = collate
        self.fill = fill

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        """Return a batch in which all images have the largest height and width.

        `size` is the (height, width) of each before, where *collate* keeps it.
        """
        shapes = [sample['image'].shape[-2:] for sample in samples]
        size = tuple(max(sides) for sides in zip(*shapes, strict=True))
        return self.collate([self._padded(sample, size) for sample in samples])

    def _padded(self, sample: dict[str, Any], size: Sequence[int]) -> dict[str, Any]:
        padded = {'size': torch.tensor(sample['image'].shape[-2:])}
        for name, value in self.fill.items():
            if name in sample:
                # Whole numbers have no NaN.
                tensor = sample[name].float() if isnan(value) else sample[name]
                padded[name] = pad_to(tensor, size, value)
        return sample | padded


def pad_to(image: Tensor, size: Sequence[int], value: float = 0) -> Tensor:
    """Return (..., H, W) padded at the right and at the bottom, at least to *size*."""
    below = max(0, size[0] - image.shape[-2])
    right = max(0, size[1] - image.shape[-1])
    return pad(image, (0, right, 0, below), value=value) if below or right else image


def explain_mixed_sizes(datamodule: Any) -> None:
    """Let a data module say so if its images have mixed sizes, in place."""
    wrap_collate(datamodule, ExplainSizes)


def wrap_collate(datamodule: Any, wrap: Callable[[Collate], Collate]) -> None:
    """Wrap a data module's collate function once, in place."""
    collate = getattr(datamodule, 'collate_fn', None)
    if collate is not None and not isinstance(collate, ExplainSizes | PadSizes):
        datamodule.collate_fn = wrap(collate)
