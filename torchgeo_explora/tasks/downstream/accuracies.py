"""Scores of many classifiers at once: count them, choose from them, write them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_f1_score,
)
from torchmetrics.utilities import dim_zero_cat

from torchgeo_explora.writing import replacing, write_to


class AccuracyOfEach(Metric):
    """Share of images that each of several classifiers gets right.

    Args:
        heads: Number of classifiers.

    Attributes:
        names: Names of what `compute` returns; the first one chooses.
    """

    names = ('accuracy',)
    full_state_update = False
    right: Tensor
    total: Tensor

    def __init__(self, heads: int) -> None:
        """Start with no images."""
        super().__init__()
        zero = torch.zeros(heads, dtype=torch.long)
        self.add_state('right', zero, dist_reduce_fx='sum')
        self.add_state('total', torch.tensor(0), dist_reduce_fx='sum')

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            scores: The largest one wins, (heads, B, classes).
            labels: (B,).
        """
        self.right += (scores.argmax(-1) == labels).sum(1)
        self.total += len(labels)

    def compute(self) -> Tensor:
        """Return the accuracies, (1, heads), in [0, 1]."""
        return (self.right / self.total.clamp(min=1))[None]


class ConfusionOfEach(Metric):
    """Truth and prediction of each image by several classifiers.

    They are kept instead of a matrix for each classifier: only one classifier counts in
    the end, and there may be thousands of classes.

    Args:
        classes: Number of classes, C.
    """

    full_state_update = False
    labels: list[Tensor]
    guesses: list[Tensor]

    def __init__(self, classes: int) -> None:
        """Start with no images."""
        super().__init__()
        self.classes = classes
        # Processes cannot exchange int16.
        self.kind = torch.uint8 if classes <= 256 else torch.int32
        for name in ('labels', 'guesses'):
            self.add_state(name, [], dist_reduce_fx='cat')

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Keep a batch.

        Args:
            scores: The largest one wins, (heads, B, C).
            labels: (B,).
        """
        self.labels.append(labels.to(self.kind))
        self.guesses.append(scores.argmax(-1).T.to(self.kind))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the truth (N,) and the predictions (N, heads) of all images."""
        return dim_zero_cat(self.labels), dim_zero_cat(self.guesses)

    def matrix(self, head: int) -> Tensor:
        """Return the confusion matrix of a classifier, (C, C), truth by prediction.

        All processes must call it.
        """
        labels, guesses = (each.cpu().long() for each in self.compute())
        cells = labels * self.classes + guesses[:, head]
        counts = torch.bincount(cells, minlength=self.classes**2)
        return counts.view(self.classes, self.classes)


class MultilabelScoresOfEach(Metric):
    """Mean average precision and F1 of several multi-label classifiers.

    `mAP` is the mean over the labels (macro), `F1` counts all labels together (micro)
    at a probability of 0.5, like TorchGeo's `OverallF1Score`.

    Attributes:
        names: Names of what `compute` returns; the first one chooses.
    """

    names = ('mAP', 'F1')
    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        """Start with no images."""
        super().__init__()
        for name in ('scores', 'labels'):
            self.add_state(name, [], dist_reduce_fx='cat')

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Keep a batch.

        Args:
            scores: Probabilities, (heads, B, labels).
            labels: 0 or 1, (B, labels).
        """
        # torchmetrics takes values outside [0, 1], even if only by rounding, for
        # logits.
        self.scores.append(scores.clamp(0, 1).transpose(0, 1))
        self.labels.append(labels.long())

    def compute(self) -> Tensor:
        """Return mAP and F1, (2, heads), in [0, 1]."""
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        count = labels.shape[1]
        both = [
            (
                multilabel_average_precision(of_head, labels, count),
                multilabel_f1_score(of_head, labels, count, average='micro'),
            )
            for of_head in scores.unbind(1)
        ]
        return torch.tensor(both, device=labels.device).T


class Selection:
    """Choose the classifier that counts, by two protocols.

    *paper* is the score of the best classifier on the reported split, which is
    optimistic; *held_out* is the score on that split of the classifier that was best in
    validation.

    Args:
        score: Name of the score.

    Attributes:
        validated: Score of each classifier in the last validation; None before it.
        best: Best score of all classifiers and validations so far.
    """

    def __init__(self, score: str = 'accuracy') -> None:
        """Start without a validation."""
        self.score = score
        self.validated: list[float] | None = None
        self.best = 0.0

    @property
    def chosen(self) -> int:
        """Number of the classifier that was best in validation; the first of equals.

        Raises:
            ValueError: If there was no validation.
        """
        if self.validated is None:
            raise ValueError(
                'no validation chose a classifier: fit with a validation set, or pass'
                ' the checkpoint of such a run (--ckpt_path)'
            )
        return self.validated.index(max(self.validated))

    def validate(self, scores: list[float]) -> dict[str, float]:
        """Take the scores of a validation, and return the metrics to log."""
        self.validated = scores
        self.best = max(self.best, *scores)
        return {f'val_{self.score}': max(scores), 'val_paper': self.best}

    def test(self, scores: list[float]) -> dict[str, float]:
        """Return the metrics of a test: both protocols, or *paper* with a warning."""
        metrics = {'test_paper': max(scores)}
        if self.validated is None:
            rank_zero_warn(
                'no held_out figure: no validation chose a classifier; fit with a'
                ' validation set, and test its checkpoint (--ckpt_path)'
            )
        else:
            metrics['test_held_out'] = scores[self.chosen]
        return metrics

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {'validated': self.validated, 'best': self.best}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.validated = state['validated']
        self.best = state['best']


def write_table(trainer: Trainer, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV file in the trainer's root folder, in the first process.

    Args:
        trainer: The trainer.
        name: Name of the file, without its suffix.
        rows: At least one row; all have the keys of the first.
    """
    if not trainer.is_global_zero:
        return

    def write(path: Path) -> None:
        with replacing(path) as part, part.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    place, _ = write_to(trainer.default_root_dir, f'{name}.csv', write)
    rank_zero_info(f'{name}: {place}')
