"""Which layers a PEFT adapter takes, and which adapters a delta can hold."""

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn

from torchgeo_explora.functional.autocast import under_autocast

_REWRITES = 'rewrites frozen weights: the delta could not restore them'
_REFUSED_INITIALISATIONS = {
    'corda': _REWRITES,
    'eva': 'takes its first values from training data, which is not available here',
    'loftq': _REWRITES,
    'lora_ga': _REWRITES,
    'olora': _REWRITES,
    'pissa': _REWRITES,
}


def adapter_kind(adapter: PeftConfig) -> str:
    """Return PEFT's own short name for the method, for example `LORA`."""
    return str(getattr(adapter.peft_type, 'value', adapter.peft_type))


def select_layers(
    adapter: PeftConfig, modules: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Return the modules that *adapter* targets, by name, under PEFT's own rules.

    Args:
        adapter: Its `target_modules` are the ends of names, one regular expression that
            matches whole names, or `all-linear`; `exclude_modules` is respected.
        modules: The modules to choose from, by full name.

    Raises:
        ValueError: If the adapter names no target, or a target that matches nothing.
    """
    wanted = getattr(adapter, 'target_modules', None)
    if not wanted:
        raise ValueError(
            f'adapter {adapter_kind(adapter)} has no target_modules: name the layers, '
            "for example target_modules=['q', 'v']"
        )
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    rule: Any = copy.copy(adapter)
    if isinstance(wanted, str) and wanted.lower() == 'all-linear':
        rule.target_modules = linear
    chosen = {
        name: module
        for name, module in modules.items()
        if check_target_module_exists(rule, name)
    }
    idle = (
        []
        if isinstance(wanted, str)
        else [end for end in wanted if not any(_ends(name, end) for name in modules)]
    )
    if idle or not chosen:
        ends = sorted({'.'.join(name.split('.')[-2:]) for name in linear})
        hint = (
            '; `torchgeo_explora.models.Attention` splits qkv into q, k and v'
            if 'attn.qkv' in ends
            else ''
        )
        raise ValueError(
            f'adapter target_modules {sorted(idle) if idle else wanted!r} match no '
            f'layer of the frozen blocks: choose among {", ".join(ends)}{hint}'
        )
    return chosen


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f'.{end}')


def check_adapter(adapter: PeftConfig, layers: Mapping[str, nn.Module]) -> None:
    """Make sure that a delta can hold *adapter*, before a backbone is changed.

    A copy of each kind of layer is filled with random values, adapted and checked for
    what all other code relies on: the adapter starts as the identity, leaves the base
    unchanged, can be restored from its state dict and folds into the base.

    Args:
        adapter: Configuration of any PEFT method.
        layers: The layers it will be put on, by full name.

    Raises:
        ValueError: If the adapter fails one of these checks, with the reason.
    """
    kind = adapter_kind(adapter)
    start = str(getattr(adapter, 'init_lora_weights', '')).lower()
    for name, reason in _REFUSED_INITIALISATIONS.items():
        if start.startswith(name):
            raise ValueError(
                f"adapter initialisation {start!r} {reason}; use True, 'gaussian' or "
                "'orthogonal'"
            )
    if (bias := getattr(adapter, 'bias', 'none')) != 'none':
        raise ValueError(
            f"adapter bias {bias!r} trains biases of the base: use bias='none' "
            'and name them in Adaptation(modules=...)'
        )
    for option in ('modules_to_save', 'target_parameters'):
        if getattr(adapter, option, None):
            raise ValueError(
                f'adapter option {option} is not supported: name the modules to train '
                'in full in Adaptation(modules=...)'
            )
    kinds = {
        (type(layer), tuple(tuple(p.shape) for p in layer.parameters())): (name, layer)
        for name, layer in layers.items()
    }
    for name, layer in kinds.values():
        # The trial must not touch the caller's generator or default device.
        with torch.random.fork_rng(devices=[]), torch.device('cpu'):
            try:
                failure = _try(adapter, name.rpartition('.')[2], layer)
            except Exception as error:
                raise ValueError(
                    f'adapter {kind} does not work on {name} ({layer}): {error}'
                ) from error
        if failure:
            raise ValueError(f'adapter {kind} {failure}')


def _try(adapter: PeftConfig, name: str, layer: nn.Module) -> str | None:
    """Return what *adapter* gets wrong on a copy of *layer*, or None."""
    base = copy.deepcopy(layer).to_empty(device='cpu').float()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_(std=0.02)
    frozen = dict(base.named_parameters())
    values = {key: parameter.detach().clone() for key, parameter in frozen.items()}
    image = torch.randn(4, frozen['weight'].shape[-1])
    reference = base(image)

    adapted = _inject_one(adapter, name, base)
    kept = dict(adapted.get_base_layer().named_parameters())
    if any(
        kept.get(key) is not frozen[key] or not torch.equal(kept[key], values[key])
        for key in frozen
    ):
        return _REWRITES
    if not _close(adapted(image), reference):
        return (
            'does not start as the identity: the model would differ from the base '
            'before the first step; choose an initialisation that does (init_weights)'
        )

    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
    output = adapted(image)
    again = _inject_one(adapter, name, copy.deepcopy(base))
    again.load_state_dict(adapted.state_dict())
    if not _close(again(image), output):
        return (
            'draws random values that its state dict does not hold: the delta could '
            'not restore it; fix its random seed'
        )
    adapted.merge()
    if not _close(adapted.get_base_layer()(image), output):
        return 'does not fold into the base: `merged` would give a different model'
    return None


def _inject_one(adapter: PeftConfig, name: str, layer: nn.Module) -> Any:
    parent = nn.Module()
    parent.add_module(name, layer)
    return inject(adapter, parent, [name]).get_submodule(name).eval()


def _close(left: Tensor, right: Tensor) -> bool:
    scale = right.abs().max().item()
    return torch.allclose(left, right, rtol=0, atol=1e-4 * scale)


def inject(adapter: PeftConfig, module: nn.Module, names: list[str]) -> nn.Module:
    """Put *adapter* on exactly the layers *names* of *module*, in place.

    Everything else is frozen.
    """
    rule: Any = copy.deepcopy(adapter)
    # A regular expression must match whole names; a list would also match other layers
    # whose names have the same end.
    rule.target_modules = '|'.join(re.escape(name) for name in names)
    # The configuration of a published adapter is set for inference only.
    rule.inference_mode = False
    adapted = inject_adapter_in_model(rule, module)
    for layer in adapted.modules():
        if isinstance(layer, LoraLinear) and not layer.lora_variant:
            # Under autocast, PEFT's own cast would widen an input that was narrowed
            # once for all projections; each adapter would narrow it and keep it again.
            layer.cast_input_dtype_enabled = False
            for down in layer.lora_A.values():
                down.register_forward_pre_hook(_match_type)
    return adapted


def take_off(module: nn.Module) -> None:
    """Replace every adapted layer by its original layer, without the adapters."""
    for name, layer in [*module.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            parent, _, leaf = name.rpartition('.')
            setattr(module.get_submodule(parent), leaf, layer.get_base_layer())
    vars(module).pop('peft_config', None)


def _match_type(layer: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    if under_autocast(inputs[0]):
        return inputs
    return (inputs[0].to(layer.weight.dtype),)
