import math

import pytest
import torch
from sklearn.metrics import f1_score

from torchgeo_explora.datasets.wilds.metrics import (
    accuracy,
    average_over_domains,
    by_domain,
    detection_accuracy,
    macro_f1,
    over_runs,
)


def test_over_runs():
    mean, deviation = over_runs([0.7, 0.8, 0.9])
    assert mean == pytest.approx(0.8)
    # The deviation of a sample: divided by 2, not 3.
    assert deviation == pytest.approx(0.1)
    assert math.isnan(over_runs([0.7])[1])


def test_accuracy():
    assert accuracy(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])) == 0.75


def test_macro_f1_is_that_of_scikit_learn_over_the_classes_that_occur():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 12, (200,), generator=generator)
    # Classes 12 to 19 are predicted but never true.
    predictions = torch.randint(0, 20, (200,), generator=generator)
    predictions[::2] = labels[::2]
    expected = f1_score(labels, predictions, average='macro', labels=labels.unique())
    assert macro_f1(predictions, labels) == pytest.approx(expected)


TRUTH = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])


@pytest.mark.parametrize(
    ('boxes', 'expected'),
    [
        # One found, one missed.
        ([[0, 0, 10, 10]], 1 / 2),
        # Both found, one of them twice: the second match is a false positive.
        ([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], 2 / 3),
        # An overlap of 50 of 100 counts, one of 40 does not.
        ([[0, 0, 10, 5]], 1 / 2),
        ([[0, 0, 10, 4]], 0 / 3),
        ([[50, 50, 60, 60]], 0 / 3),
        ([], 0),
    ],
)
def test_detection_accuracy(boxes, expected):
    predicted = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    scores = torch.full((len(predicted),), 0.9)
    assert detection_accuracy(predicted, scores, TRUTH) == pytest.approx(expected)


def test_boxes_of_low_confidence_do_not_count():
    scores = torch.tensor([0.9, 0.5])
    assert detection_accuracy(TRUTH, scores, TRUTH) == 0.5


def test_nothing_to_find():
    none = torch.zeros(0, 4)
    assert detection_accuracy(none, torch.zeros(0), none) == 1
    assert detection_accuracy(TRUTH, torch.ones(2), none) == 0
    assert detection_accuracy(TRUTH, torch.zeros(2), none) == 1


def test_domains_count_alike_whatever_their_size():
    values = torch.tensor([1.0, 1.0, 1.0, 0.0])
    domains = torch.tensor([5, 5, 5, 9])
    assert average_over_domains(values, domains) == 0.5


def test_accuracy_by_domain():
    right = torch.tensor([True, False, True, True])
    assert by_domain(right, torch.tensor([7, 7, 2, 2])) == {2: 1.0, 7: 0.5}
