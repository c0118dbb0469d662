"""Deltas as adapter folders of PEFT."""

import copy
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from torchgeo_explora.adapt import delta_state_dict, merged
from torchgeo_explora.adapt.delta import adapted
from torchgeo_explora.export.transformers_folder import transformers_model
from torchgeo_explora.models import Backbone
from torchgeo_explora.models.formats.transformers import timm_name
from torchgeo_explora.writing import filling

# PEFT's files put this before the names of a model's modules.
_PREFIX = 'base_model.model.'


def export_peft(
    backbone: Backbone, folder: str | os.PathLike[str], base: str | None = None
) -> None:
    """Write the delta for `peft.PeftModel.from_pretrained(plain, folder)`.

    *plain* is the same backbone with the weights of the base. Adapters stay adapters;
    blocks and norms that were trained in full become `modules_to_save`.

    Args:
        backbone: An adapted backbone.
        folder: Where `adapter_config.json` and the weights go.
        base: Name of the base's weights, for the configuration.

    Raises:
        OSError: If the files cannot be written.
        ValueError: If the backbone is not adapted, or the delta has a tensor that does
            not belong to a module, such as the class token: PEFT cannot store it.
    """
    host = merged(backbone)
    _export(backbone, folder, base, host, {name: name for name in host.state_dict()})


def export_peft_transformers(
    backbone: Backbone, folder: str | os.PathLike[str], base: str | None = None
) -> None:
    """Write the delta for `peft.PeftModel.from_pretrained(model, folder)`.

    *model* is what `export_transformers` writes, with the weights of the base: a
    Dinov2Model, for instance. Names follow the installed version of transformers.

    Args:
        backbone: An adapted backbone.
        folder: Where `adapter_config.json` and the weights go.
        base: Name of the base's weights, for the configuration.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        OSError: If the files cannot be written.
        ValueError: As for `export_peft`, or if transformers has no such model.
    """
    host = transformers_model(backbone)
    names = {timm_name(name): name for name in host.state_dict()}
    _export(backbone, folder, base, host, names)


def _export(
    backbone: Backbone,
    folder: str | os.PathLike[str],
    base: str | None,
    host: nn.Module,
    names: Mapping[str, str],
) -> None:
    """Write the delta under the names of *host*.

    Args:
        backbone: An adapted backbone.
        folder: Where the files go.
        base: Name of the base's weights.
        host: The model that the adapter is for, with the delta merged.
        names: The host's name of each tensor of the merged backbone.
    """
    change = adapted(backbone)
    if change is None:
        raise ValueError('this backbone has no delta: use export_timm')
    layers = [
        n for n, module in backbone.named_modules() if hasattr(module, 'base_layer')
    ]
    adaptation = change.adaptation
    if not layers:
        raise ValueError(
            f'the delta {adaptation.name(len(backbone.blocks))} has no adapter, and'
            ' PEFT cannot store a delta without one: use export_timm'
        )
    under = tuple(f'{name}.' for name in layers)
    trained = [key for key in delta_state_dict(backbone) if not key.startswith(under)]
    blocks = [f'blocks.{index}' for index in adaptation.blocks(len(backbone.blocks))]
    whole = _modules(trained, blocks)

    place = {name: _host_module(name, names) for name in [*layers, *whole]}
    state: Mapping[str, Tensor] = host.state_dict()
    tensors: dict[str, Tensor] = {}
    for name in whole:
        # PEFT replaces whole modules, so their untrained tensors are written too.
        start = f'{place[name]}.'
        tensors |= {key: value for key, value in state.items() if key.startswith(start)}
    for key, value in get_peft_model_state_dict(backbone).items():
        layer = next(name for name in layers if key.startswith(f'{name}.'))
        tensors[f'{place[layer]}{key.removeprefix(layer)}'] = value

    config: Any = copy.deepcopy(adaptation.adapter)
    config.target_modules = '|'.join(re.escape(place[name]) for name in layers)
    config.modules_to_save = [place[name] for name in whole] or None
    config.base_model_name_or_path = base
    config.inference_mode = True
    written = {
        f'{_PREFIX}{key}': value.detach().cpu().contiguous()
        for key, value in tensors.items()
    }
    with filling(folder) as part:
        config.save_pretrained(part)
        save_file(written, part / 'adapter_model.safetensors', {'format': 'pt'})


def _modules(keys: Iterable[str], blocks: Iterable[str]) -> list[str]:
    """Return the modules that hold the tensors *keys*, each block as one module.

    Raises:
        ValueError: If tensors belong to no module; all of these are listed.
    """
    found: dict[str, None] = {}
    lost = []
    for key in keys:
        block = next((name for name in blocks if key.startswith(f'{name}.')), None)
        module = block or key.rpartition('.')[0]
        if module:
            found[module] = None
        else:
            lost.append(key)
    if lost:
        raise ValueError(
            f'PEFT saves modules, and cannot store the trained {", ".join(lost)}: use'
            ' export_timm, or train with cls_token=False and without such *modules*'
        )
    return [*found]


def _host_module(name: str, names: Mapping[str, str]) -> str:
    """Return the host's name for one of our modules.

    Raises:
        ValueError: If the host has no such module.
    """
    inside = [hosts for ours, hosts in names.items() if ours.startswith(f'{name}.')]
    if not inside:
        raise ValueError(f'the model has no separate layer for {name}: use export_timm')
    # The part of the path that all tensors of the module share.
    paths = zip(*(host.split('.')[:-1] for host in inside), strict=False)
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, paths)
    return '.'.join(parts[0] for parts in shared)
