"""The metrics of the WILDS leaderboards, and means by domain."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou


def over_runs(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation over runs with different seeds.

    The leaderboards ask for at least three runs (ten on Camelyon17). This is the sample
    standard deviation, NaN for a single run.
    """
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    squares = sum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1))


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share of correct predictions over all samples (Camelyon17).

    Args:
        predictions: Classes, (N,) long.
        labels: Classes, (N,) long.
    """
    return (predictions == labels).double().mean().item()


def macro_f1(predictions: Tensor, labels: Tensor) -> float:
    """Return the F1 score averaged over the classes that occur in *labels* (iWildCam).

    Args:
        predictions: Classes, (N,) long.
        labels: Classes, (N,) long.
    """
    scores = []
    for label in labels.unique():
        predicted, true = predictions == label, labels == label
        # 2 TP / (2 TP + FP + FN)
        scores.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    return torch.stack(scores).double().mean().item()


def detection_accuracy(
    boxes: Tensor,
    scores: Tensor,
    truth: Tensor,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.5,
) -> float:
    """Return TP / (TP + FP + FN) of one image (GlobalWheat).

    Each predicted box is matched with the true box that it overlaps most, if the
    overlap is large enough. A true box counts once, however many predictions match it.

    Args:
        boxes: Predictions, (N, 4), both corners.
        scores: Their confidence, (N,); boxes at or below the threshold are ignored.
        truth: True boxes, (M, 4).
        iou_threshold: Least intersection over union of a match.
        score_threshold: Confidence above which a box is predicted.

    Returns:
        The accuracy; 1 if there is nothing to find and nothing was found.
    """
    boxes = boxes[scores > score_threshold]
    if not len(boxes) or not len(truth):
        return float(len(boxes) == len(truth))
    overlap, match = box_iou(boxes, truth).max(1)
    found = len(match[overlap >= iou_threshold].unique())
    return found / (len(boxes) + len(truth) - found)


def by_domain(values: Tensor, domains: Tensor) -> dict[int, float]:
    """Return the mean of each domain, such as its accuracy.

    Args:
        values: A value for each sample, (N,), such as whether its class is correct.
        domains: Domain of each sample, (N,) long.
    """
    return {
        int(domain): values[domains == domain].double().mean().item()
        for domain in domains.unique()
    }


def average_over_domains(values: Tensor, domains: Tensor) -> float:
    """Return the mean over domains of the mean within each (GlobalWheat).

    Args:
        values: A value for each sample, (N,).
        domains: Domain of each sample, (N,) long.
    """
    means = by_domain(values, domains).values()
    return torch.tensor(list(means), dtype=torch.float64).mean().item()
