"""Sums over all processes of a run, with their gradient."""

import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total: Tensor = torch.distributed.nn.all_reduce(values)
    return total / dist.get_world_size()
