"""How much patch features of one image vary, and along which directions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def principal_eigenvalues(tokens: Tensor, count: int = 10) -> Tensor:
    """Return the largest eigenvalues of the covariance of each image's tokens.

    Khanna et al., *ExPLoRA*, section on block-wise analysis: large where patches of an
    image differ (local information), small where all of them say the same (global
    information). The paper leaves the scale open. Here every token is first
    standardised over its channels, so that blocks, and models of one width, can be
    compared: the eigenvalues of an image add up to at most D * N / (N - 1).

    Args:
        tokens: (B, N, D), with at least 2 tokens.
        count: Number of eigenvalues; fewer if N - 1 or D is smaller.

    Returns:
        (B, min(count, N - 1, D)), float32, largest first.

    Raises:
        ValueError: If there are fewer than 2 tokens, or *count* is below 1.
    """
    if tokens.ndim != 3 or tokens.shape[1] < 2:
        raise ValueError(
            f'tokens are {tuple(tokens.shape)}, expected (B, N, D) with two tokens or'
            ' more: use a larger image size'
        )
    if count < 1:
        raise ValueError(f'*count* is {count}: at least 1 eigenvalue is needed')
    number, width = tokens.shape[1:]
    # In float64: the smallest ones of a collapsed block would be lost in rounding.
    x = F.layer_norm(tokens.double(), (width,), eps=1e-12)
    x = x - x.mean(1, keepdim=True)
    # The smaller of the two products has the same eigenvalues.
    product = x @ x.mT if number < width else x.mT @ x
    values = torch.linalg.eigvalsh(product / (number - 1)).flip(-1).clamp_min(0)
    return values[:, : min(count, number - 1, width)].float()
