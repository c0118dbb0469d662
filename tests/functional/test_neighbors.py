"""The vote of the nearest neighbours."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from torchgeo_explora.functional import knn_vote, nearest, neighbors


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(50, 8, generator=generator), dim=-1)
    labels = torch.randint(4, (50,), generator=generator)
    queries = F.normalize(torch.randn(9, 8, generator=generator), dim=-1)
    return bank, labels, queries


@pytest.mark.parametrize('k', [5, 10])
def test_votes_equal_the_references_but_for_their_sum(k, golden):
    arrays, config = golden('dinov2_eval')
    votes = knn_vote(
        arrays['in.train_features'],
        arrays['in.train_labels'],
        arrays['in.query_features'],
        k,
        config['num_classes'],
        config['T'],
    )
    # The reference's softmax runs over the largest k, here 10.
    expected = arrays[f'out.probas.k{k}']
    assert_close(votes, expected / expected.sum(1, keepdim=True))
    assert torch.equal(votes.argmax(1), arrays[f'out.pred.k{k}'])


@pytest.mark.parametrize('k', [1, 7, 50])
def test_votes_equal_a_loop_and_sum_to_one(k, data):
    bank, labels, queries = data
    votes = knn_vote(bank, labels, queries, k, 4, temperature=0.2)
    for query, vote in zip(queries, votes, strict=True):
        ranked = sorted(range(50), key=lambda i: -float(bank[i] @ query))[:k]
        weights = [float((bank[i] @ query / 0.2).exp()) for i in ranked]
        expected = torch.zeros(4)
        for i, weight in zip(ranked, weights, strict=True):
            expected[labels[i]] += weight / sum(weights)
        assert_close(vote, expected)
    assert_close(votes.sum(1), torch.ones(9))


def test_one_neighbour_is_the_feature_itself(data):
    bank, labels, _ = data
    votes = knn_vote(bank, labels, bank, 1, 4)
    assert torch.equal(votes, F.one_hot(labels, 4).float())


def test_slices_of_queries_change_nothing(data, monkeypatch):
    bank, labels, queries = data
    whole = knn_vote(bank, labels, queries, 5, 4)
    monkeypatch.setattr(neighbors, '_SLICE', 2 * len(bank))
    assert_close(knn_vote(bank, labels, queries, 5, 4), whole)


def test_half_precision_features_vote_in_float32(data):
    bank, labels, queries = (x.bfloat16() if x.is_floating_point() else x for x in data)
    expected = knn_vote(bank.float(), labels, queries.float(), 5, 4)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(knn_vote(bank, labels, queries, 5, 4), expected)


def test_no_query_gives_no_vote(data):
    bank, labels, queries = data
    assert knn_vote(bank, labels, queries[:0], 5, 4).shape == (0, 4)


@pytest.mark.parametrize('k', [0, 51])
def test_k_outside_the_bank_is_refused(k, data):
    bank, labels, queries = data
    with pytest.raises(ValueError, match=f'{k} neighbours.*50 features'):
        knn_vote(bank, labels, queries, k, 4)


def test_labels_outside_the_classes_are_refused(data):
    bank, labels, queries = data
    with pytest.raises(ValueError, match='num_classes'):
        knn_vote(bank, labels, queries, 5, 3)
    with pytest.raises(ValueError, match='labels from -1'):
        knn_vote(bank, labels - 1, queries, 5, 4)


def test_nearest_in_blocks_is_that_of_the_whole_bank():
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(50, 8, generator=generator), dim=1)
    queries = F.normalize(torch.randn(4, 8, generator=generator), dim=1)
    expected = (queries @ bank.T).topk(7)
    for size in (1, 3, 50):
        similarity, numbers = nearest(bank.split(size), queries, 7)
        assert torch.equal(numbers, expected.indices)
        assert_close(similarity, expected.values)


def test_nearest_of_a_small_bank_is_all_of_it_and_equal_ones_keep_their_order():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    _, numbers = nearest([bank[:2], bank[2:]], bank[:1], 9)
    assert numbers.tolist() == [[0, 2, 1]]


def test_nearest_needs_a_neighbour():
    with pytest.raises(ValueError, match=r'\*k\* is 0'):
        nearest([torch.ones(1, 2)], torch.ones(1, 2), 0)
    with pytest.raises(ValueError, match='the bank has no features'):
        nearest([], torch.ones(1, 2), 1)
