"""Where a block looks: attention maps, their entropy and their distance."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class Attended(NamedTuple):
    """How one block attends, averaged over heads."""

    cls: Tensor  # (B, N), attention of the class token to the patches
    entropy: Tensor  # (B,), of all patches' attention, relative to uniform attention
    distance: Tensor  # (B,), mean distance to what a patch attends to, in patches


class AttentionRecorder(TorchFunctionMode):
    """Within this context, record how each attention call distributes its weight.

    It sees queries and keys as they are compared, after any norm and rotation, whatever
    the backbone: every block calls torch's `scaled_dot_product_attention`.

    Args:
        grid: Axes of the patch tokens, (G or T or 1, h, w); they are the last tokens.

    Attributes:
        found: One entry per call, in order.
    """

    def __init__(self, grid: tuple[int, int, int]) -> None:
        """Start with nothing."""
        super().__init__()
        self.grid = grid
        self.found: list[Attended] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, and read the weights of an attention."""
        if func is scaled_dot_product_attention:
            query, key = args[0], args[1]
            scores = query.float() @ key.float().mT * query.shape[-1] ** -0.5
            self.found.append(summarize(scores.softmax(-1), self.grid))
        return func(*args, **(kwargs or {}))


def summarize(weights: Tensor, grid: tuple[int, int, int]) -> Attended:
    """Return a summary of the attention of one block.

    Args:
        weights: (B, heads, S + N, S + N), rows add up to 1; the N patch tokens are the
            last ones, the class token is the first.
        grid: (G or T or 1, h, w), whose product is N. Distances are within (h, w):
            groups and times of one place are 0 apart.
    """
    groups, height, width = grid
    count = groups * height * width
    patches = weights[..., -count:, -count:]
    # Attention to special tokens (registers, class) is left out, the rest rescaled.
    shares = patches / patches.sum(-1, keepdim=True).clamp_min(1e-12)
    entropy = torch.special.entr(shares).sum(-1).mean((1, 2))
    if count > 1:
        entropy = entropy / torch.tensor(float(count)).log()
    rows = torch.arange(height, device=weights.device).float()
    columns = torch.arange(width, device=weights.device).float()
    places = torch.cartesian_prod(rows, columns).reshape(-1, 2).repeat(groups, 1)
    apart = torch.cdist(places, places)  # (N, N)
    distance = (shares * apart).sum(-1).mean((1, 2))
    return Attended(weights[:, :, 0, -count:].mean(1), entropy, distance)


def truncated(scores: Tensor, limit: float = 5.0) -> Tensor:
    """Return scores, cut to at most *limit* standard deviations above their mean.

    A few patches of a ViT (artefacts without registers) can take most of the attention
    and make a map of it black. As in the paper, scores above the mean plus 5 standard
    deviations are cut.

    Args:
        scores: (B, N).
        limit: Number of standard deviations of each image's scores.
    """
    mean, std = scores.mean(1, keepdim=True), scores.std(1, keepdim=True)
    return scores.minimum(mean + limit * std)
