"""Principal components of maps of embeddings, block by block."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Basis(NamedTuple):
    """Principal components: `mean` (D,), `axes` (k, D), `shares` of variance (k,)."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    shares: NDArray[np.float64]

    def project(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return the components of values (D, h, w), (k, h, w); NaN stays NaN."""
        cells = values.reshape(len(values), -1) - self.mean[:, None]
        found = (self.axes @ cells).astype(np.float32)
        return found.reshape(len(found), *values.shape[1:])


def principal_components(blocks: Iterable[NDArray[Any]], count: int) -> Basis:
    """Return the principal components of all cells, exactly.

    Sums of values and of their products are enough, so that no more than a block is in
    memory. The largest entry of an axis, in magnitude, is positive.

    Args:
        blocks: Maps (D, h, w), NaN where there is no data.
        count: k, at most D.
    """
    cells, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for block in blocks:
        values = block.reshape(len(block), -1).astype(np.float64)
        values = values[:, np.isfinite(values).all(0)]
        if not len(total):
            total, products = np.zeros(len(block)), np.zeros((len(block),) * 2)
        cells += values.shape[1]
        total += values.sum(1)
        products += values @ values.T
    mean = total / max(cells, 1)
    variance = products / max(cells, 1) - np.outer(mean, mean)
    sizes, axes = np.linalg.eigh(variance)
    axes = axes.T[::-1][:count]
    largest = np.abs(axes).argmax(1)
    axes = axes * np.sign(axes[np.arange(count), largest])[:, None]
    sizes = sizes.clip(0)
    return Basis(mean, axes, sizes[::-1][:count] / max(sizes.sum(), 1e-30))
