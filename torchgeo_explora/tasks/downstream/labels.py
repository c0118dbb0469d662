"""Labels that fit a head, and accuracies of many heads at once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def check_labels(labels: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Raise unless every label has an output.

    Args:
        labels: Class numbers, of any shape, int64.
        classes: Number of outputs.
        ignore_index: A value that is allowed besides.

    Raises:
        ValueError: If a label is not in [0, classes); the wrong ones are listed.
    """
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
        ValueError: If one has another length.
    """
    for name, values in given.items():
        if values is not None and len(values) != outputs:
            raise ValueError(
                f'*{name}* has {len(values)} entries, expected one for each of the'
                f' {outputs} classes'
            )


class AccuracyOfEach(Metric):
    """Share of images that each of several classifiers gets right.

    Args:
        heads: How many classifiers.
    """

    full_state_update = False
    right: Tensor
    total: Tensor

    def __init__(self, heads: int) -> None:
        """Start at nothing."""
        super().__init__()
        zero = torch.zeros(heads, dtype=torch.long)
        self.add_state('right', zero, dist_reduce_fx='sum')
        self.add_state('total', torch.tensor(0), dist_reduce_fx='sum')

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            predicted: Class numbers, (heads, B).
            labels: (B,).
        """
        self.right += (predicted == labels).sum(1)
        self.total += len(labels)

    def compute(self) -> Tensor:
        """Return the accuracies, (heads,), in [0, 1]."""
        return self.right / self.total.clamp(min=1)
