"""Whether autocast applies to a tensor."""

import torch
from torch import Tensor


def under_autocast(x: Tensor) -> bool:
    """Return whether autocast chooses the type of products with *x*.

    It does not change float64, and does not support every device, such as meta.
    """
    device = x.device.type
    return (
        x.dtype != torch.float64
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    )
