"""Store the frozen weights in another type."""

from typing import Any

import torch
from torch import Tensor, nn

from torchgeo_explora.models.backbones.record import record_of


def store_frozen(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Store the frozen linear and convolution weights in *dtype*, in place.

    Autocast casts these weights at every use, so under autocast to *dtype* no bit of
    the output changes; without autocast, the layers compute in *dtype* too. Norms,
    scales, tokens, position tables and all trainable weights keep their type. Call this
    after `adapt`, which records the base's fingerprint, and before `twin`. An adapter
    that computes with the weights themselves, as DoRA does with their norms, sees them
    rounded.

    Since the base is rounded, `merged` refuses the backbone. Save its delta and load it
    into a newly loaded base with `load_delta`.

    Args:
        backbone: An adapted backbone.
        dtype: A floating type, such as `torch.bfloat16`.

    Raises:
        ValueError: If *backbone* is not adapted; it is then unchanged.
    """
    record = record_of(backbone)
    if record is None or record.adapted is None:
        raise ValueError('*backbone* is not adapted: call `adapt` first')
    for layer in backbone.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        parameters = list(layer.parameters(recurse=False))
        if any(parameter.requires_grad for parameter in parameters):
            continue
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype)
        layer.register_forward_pre_hook(_cast_input)
    record.rounded = True


def _cast_input(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(layer.weight.dtype), *inputs[1:])
