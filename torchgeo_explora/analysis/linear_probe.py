"""What a linear classifier can read from features."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_accuracy(
    features: Tensor,
    labels: Tensor,
    held_out: Tensor,
    held_labels: Tensor,
    classes: int,
    steps: int = 50,
    decay: float = 1e-3,
) -> float:
    """Train softmax regression on features, and return its accuracy on others.

    The loss is convex and is minimised over all rows at once (L-BFGS from zero), so
    that there is no learning rate, order or seed to choose. Channels are standardised
    with the statistics of the training rows.

    Args:
        features: (n, D).
        labels: (n,), class numbers in [0, classes).
        held_out: (m, D), rows that the classifier has not seen.
        held_labels: (m,).
        classes: Number of classes.
        steps: Iterations of L-BFGS.
        decay: Weight of the squared norm of the classifier.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: If there is nothing to train or to test on.
    """
    if not len(features) or not len(held_out):
        raise ValueError(
            f'{len(features)} rows to train on and {len(held_out)} to test on: give'
            ' more images'
        )
    with torch.inference_mode(False), torch.enable_grad():
        x, other = features.float().clone(), held_out.float()
        mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
        x, other = (x - mean) / std, (other - mean) / std
        weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
        bias = torch.zeros(classes, device=x.device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, line_search_fn='strong_wolfe'
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(x, weight, bias), labels)
            value = value + decay * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        with torch.no_grad():
            chosen = F.linear(other, weight, bias).argmax(1)
            return float((chosen == held_labels).float().mean())
