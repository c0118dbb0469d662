"""Nearest neighbours in a bank of features, and classification by them."""

from collections.abc import Iterable

import torch
from torch import Tensor

# Similarities held at once: 256 MB of float32.
_SLICE = 2**26


@torch.no_grad()
def knn_vote(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    k: int,
    num_classes: int,
    temperature: float = 0.07,
) -> Tensor:
    """Let the k nearest features vote, weighted by similarity (Wu et al. 2018).

    The weights are a softmax over these k neighbours. DINOv2 takes the softmax over the
    largest k of its list and sums the first k weights, which differs only by a factor
    per query and gives the same winner.

    Args:
        bank: Features of known class, (N, D), L2-normalised.
        labels: Classes of the bank, (N,) int64 in [0, num_classes); or, if a feature
            may have several labels, (N, num_classes) of 0 and 1.
        queries: (Q, D), L2-normalised.
        k: Number of neighbours that vote, at most N.
        num_classes: Number of classes.
        temperature: Temperature of the softmax over cosine similarities.

    Returns:
        Votes, (Q, num_classes) float32 in [0, 1]; with one label per feature, rows sum
        to 1.

    Raises:
        ValueError: If *k* is not in [1, N], or the labels do not fit *num_classes*.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(
            f'*k* = {k} neighbours cannot come from a bank of {len(bank)} features: '
            f'lower k to {len(bank)} or less, or fill the bank'
        )
    several = labels.ndim == 2
    if several and (labels.shape[1] != num_classes or not is_multi_hot(labels)):
        raise ValueError(
            f'labels of shape {tuple(labels.shape)} from {labels.min():g} to'
            f' {labels.max():g} do not fit *num_classes* = {num_classes}: expected 0 or'
            ' 1 for each of them'
        )
    if not several and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f'labels from {int(labels.min())} to {int(labels.max())} do not fit '
            f'*num_classes* = {num_classes}: expected 0 to {num_classes - 1}'
        )
    votes = queries.new_zeros(len(queries), num_classes, dtype=torch.float32)
    step = max(1, _SLICE // len(bank))
    chunks = zip(torch.split(queries, step), torch.split(votes, step), strict=True)
    with torch.autocast(bank.device.type, enabled=False):
        columns = bank.float().T
        for rows, counts in chunks:
            similarity, nearest = (rows.float() @ columns).topk(k)  # (q, N) -> (q, k)
            weight = (similarity / temperature).softmax(dim=-1)
            if several:
                counts.copy_(
                    torch.einsum('qk,qkl->ql', weight, labels[nearest].float())
                )
            else:
                counts.scatter_add_(1, labels[nearest], weight)
    return votes


def is_multi_hot(labels: Tensor) -> bool:
    """Return whether all values are 0 or 1."""
    return bool(((labels == 0) | (labels == 1)).all())


@torch.no_grad()
def nearest(blocks: Iterable[Tensor], queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the features of a bank that are most similar to queries, exactly.

    The bank is read once, block by block, and never held as a whole.

    Args:
        blocks: Features in blocks of (n, D), L2-normalised; n may differ.
        queries: (Q, D), L2-normalised.
        k: Number of neighbours; all if the bank has fewer.

    Returns:
        Cosine similarities, (Q, k) float32, largest first, and the numbers of the
        features in the bank, (Q, k) int64. Equal similarities keep the bank's order.

    Raises:
        ValueError: If *k* is below 1, or there is no feature.
    """
    if k < 1:
        raise ValueError(f'*k* is {k}: give 1 or more')
    best = queries.new_zeros(len(queries), 0, dtype=torch.float32)
    found = queries.new_zeros(len(queries), 0, dtype=torch.int64)
    start = 0
    for block in blocks:
        numbers = torch.arange(start, start + len(block), device=queries.device)
        start += len(block)
        similarity = queries.float() @ block.float().to(queries.device).T  # (Q, n)
        candidates = torch.cat([best, similarity], 1)
        places = torch.cat([found, numbers.expand(len(queries), -1)], 1)
        order = candidates.argsort(dim=1, descending=True, stable=True)[:, :k]
        best, found = candidates.gather(1, order), places.gather(1, order)
    if not start:
        raise ValueError('the bank has no features: give at least one')
    return best, found
