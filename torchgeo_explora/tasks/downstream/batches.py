"""Batches of labelled images: mixed sizes, and labels without an output."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchgeo_explora.functional.neighbors import is_multi_hot

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
                ' data set a transform that resizes them, or use'
                ' torchgeo_explora.datamodules.ImageFolderDataModule with *size*'
            )
        return self.collate(samples)


class PadSizes:
    """A collate function that first pads images on the right and at the bottom.

    Args:
        collate: The data module's own.
        fill: Value of the padding, by name of the tensor, (..., H, W).
    """

    def __init__(self, collate: Collate, fill: dict[str, float]) -> None:
        """Wrap *collate*."""
        self.collate = collate
        self.fill = fill

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        """Return a batch in which all images have the largest height and width.

        `size` is the original (height, width) of each, if *collate* keeps it.
        """
        shapes = [sample['image'].shape[-2:] for sample in samples]
        size = tuple(max(sides) for sides in zip(*shapes, strict=True))
        return self.collate([self._padded(sample, size) for sample in samples])

    def _padded(self, sample: dict[str, Any], size: Sequence[int]) -> dict[str, Any]:
        padded = {'size': torch.tensor(sample['image'].shape[-2:])}
        for name, value in self.fill.items():
            if name in sample:
                # Integers have no NaN.
                tensor = sample[name].float() if isnan(value) else sample[name]
                padded[name] = pad_to(tensor, size, value)
        return sample | padded


def pad_to(image: Tensor, size: Sequence[int], value: float = 0) -> Tensor:
    """Return (..., H, W) padded on the right and at the bottom, at least to *size*."""
    below = max(0, size[0] - image.shape[-2])
    right = max(0, size[1] - image.shape[-1])
    return pad(image, (0, right, 0, below), value=value) if below or right else image


def explain_mixed_sizes(datamodule: Any) -> None:
    """Make a data module explain images of mixed sizes, in place."""
    wrap_collate(datamodule, ExplainSizes)


def wrap_collate(datamodule: Any, wrap: Callable[[Collate], Collate]) -> None:
    """Wrap a data module's collate function once, in place."""
    collate = getattr(datamodule, 'collate_fn', None)
    if collate is not None and not isinstance(collate, ExplainSizes | PadSizes):
        datamodule.collate_fn = wrap(collate)


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """Return the labels of a batch.

    Raises:
        ValueError: If there are none.
    """
    if 'label' not in batch:
        raise ValueError(
            'the images have no labels (a batch holds'
            f' {", ".join(sorted(batch))}), but the task needs one for each: put the'
            ' images of each class into a folder of their own, name the label column of'
            ' a CSV file, or choose another split'
        )
    labels: Tensor = batch['label']
    return labels


def check_multi_hot(labels: Tensor, outputs: int) -> None:
    """Raise unless the labels have a 0 or 1 for every output.

    Args:
        labels: Labels of a batch.
        outputs: Number of outputs.

    Raises:
        ValueError: If the labels have another shape or other values.
    """
    if labels.ndim != 2 or labels.shape[1] != outputs or not is_multi_hot(labels):
        raise ValueError(
            f'the labels have shape {tuple(labels.shape)} and values from'
            f' {labels.min():g} to {labels.max():g}, expected (B, {outputs}) of 0 and 1'
            " for *task* 'multilabel': set *num_classes* to the number of labels, or"
            " *task* to 'multiclass' for one class number for each image"
        )


def check_labels(labels: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Raise unless every label has an output.

    Args:
        labels: Class numbers, of any shape, int64.
        classes: Number of outputs.
        ignore_index: A value that is also allowed.

    Raises:
        ValueError: If a label is not in [0, classes); the error lists such labels.
    """
    if labels.ndim == 2 and labels.shape[1] == classes and is_multi_hot(labels):
        raise ValueError(
            f'the labels are {classes} numbers of 0 or 1 for each image, expected one'
            " class number: set *task* to 'multilabel'"
        )
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        found = labels[wrong].unique().tolist()
        ignored = '' if ignore_index is None else f', or {ignore_index} for no label'
        raise ValueError(
            f'the labels hold {found[:8]}, expected 0 to {classes - 1}{ignored}: set'
            ' *num_classes* to the number of classes of the data set'
            + (', or *ignore_index*' if ignore_index is None else '')
        )


def check_lengths(outputs: int, **given: Sequence[object] | None) -> None:
    """Raise unless each list has an entry for every output.

    Args:
        outputs: Number of outputs.
        **given: Lists by the name of their argument, or None.

    Raises:
        ValueError: If a list has another length.
    """
    for name, values in given.items():
        if values is not None and len(values) != outputs:
            raise ValueError(
                f'*{name}* has {len(values)} entries, expected one for each of the'
                f' {outputs} classes'
            )
