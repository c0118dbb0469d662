"""What autocast does, asked for a tensor."""

import torch
from torch import Tensor


def under_autocast(x: Tensor) -> bool:
    """Return whether autocast chooses the type of products of *x*.

    It leaves float64 alone, and does not know every kind of device: not the meta one.
    """
    device = x.device.type
    return (
        x.dtype != torch.float64
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    )
