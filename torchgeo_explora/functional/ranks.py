"""Values that all processes of a run share."""

import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, or the tensor if there is one.

    Gradients flow through it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total: Tensor = torch.distributed.nn.all_reduce(values)
    return total / dist.get_world_size()


def from_first_rank(values: Tensor) -> Tensor:
    """Return the first process's values in every process, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(values, src=0)
    return values
