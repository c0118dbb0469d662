"""The identity of weights: a SHA-256 over names, shapes and values."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, 64 hexadecimal digits.

    The hash covers the names in sorted order, each followed by the tensor's shape and
    its values as little-endian float32. It does not depend on the order of the state,
    the device, or a storage type that holds the same values.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f'{name} {tuple(tensor.shape)}\n'.encode())
        values = tensor.to('cpu', torch.float32).contiguous().view(-1).numpy()
        digest.update(np.asarray(values, dtype='<f4').data)
    return digest.hexdigest()
