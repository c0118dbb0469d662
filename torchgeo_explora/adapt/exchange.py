"""Replace a LoRA that has not been trained yet by another adapter."""

from dataclasses import replace
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from torchgeo_explora.adapt.adaptation import adapt
from torchgeo_explora.adapt.adapters import take_off
from torchgeo_explora.adapt.delta import adapted


def exchange_adapter(backbone: nn.Module, adapter: PeftConfig) -> None:
    """Replace the adapter of an adapted backbone, in place, before training.

    The rest of the delta, the base and its lineage stay the same, and so does the
    output: LoRA adds nothing before its first step.

    Args:
        backbone: As `adapt` returned it, with LoRA.
        adapter: The adapter to use instead.

    Raises:
        ValueError: If the LoRA has learned something or is not the only adapter, or if
            *adapter* does not fit. The backbone then keeps its adaptation; in the last
            case, its LoRA is initialised again.
    """
    host: Any = backbone
    change = adapted(backbone)
    if change is None:
        raise ValueError('*backbone* is not adapted: call `adapt` first')
    _require_new_lora(backbone, change.delta)
    lineage = host.record.lineage
    # PEFT gives an adapter the type of its layer, which would round its first values.
    types = {p: p.dtype for p in backbone.parameters() if p.is_floating_point()}
    for parameter in types:
        parameter.data = parameter.data.float()
    _take_adaptation_off(backbone)
    try:
        adapt(backbone, replace(change.adaptation, adapter=adapter))
    except ValueError:
        adapt(backbone, change.adaptation)
        raise
    finally:
        for parameter, dtype in types.items():
            parameter.data = parameter.data.to(dtype)
        # `adapt` assumes that a plain backbone with a fingerprint was just loaded.
        host.record.lineage = lineage


def _require_new_lora(backbone: nn.Module, delta: tuple[str, ...]) -> None:
    """Raise unless every adapter is LoRA, is in *delta* and adds nothing yet."""
    state = backbone.state_dict()
    ups = [key for key in delta if '.lora_B.' in key]
    for name, module in backbone.named_modules():
        if isinstance(module, BaseTunerLayer) and not any(
            key.startswith(f'{name}.lora_B.') for key in ups
        ):
            raise ValueError(f'it is not the only adapter ({name} has another)')
    if any(torch.count_nonzero(state[key]) for key in ups):
        raise ValueError('it has learned something')


def _take_adaptation_off(backbone: nn.Module) -> None:
    """Make an adapted backbone plain again, without folding its delta in."""
    host: Any = backbone
    frozen = host.record.adapted.frozen
    take_off(backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name not in frozen)
    host.record.adapted = None
