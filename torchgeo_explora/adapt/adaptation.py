"""Which weights are trained: the adaptation, applying it, and folding it in."""

import copy
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from torchgeo_explora.adapt.adapters import (
    adapter_kind,
    check_adapter,
    inject,
    select_layers,
    take_off,
)
from torchgeo_explora.adapt.delta import (
    adapted,
    base_fingerprint,
    lineage,
    lineage_merged,
)
from torchgeo_explora.adapt.from_file import adapter_from_file
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.record import Adapted, Record, record_of
from torchgeo_explora.terminal import printable

# Where torch and timm define normalisation layers, and nothing else with weights.
_NORM_MODULES = {
    'torch.nn.modules.batchnorm',
    'torch.nn.modules.normalization',
    'timm.layers.norm',
    'timm.layers.norm_act',
}


def lora(rank: int = 64, alpha: int = 1) -> LoraConfig:
    """Return LoRA on the queries and values, as in the code of ExPLoRA's authors.

    The update is alpha / rank * B A with alpha = 1; PEFT's own default is alpha = 8.
    """
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=['q', 'v'])


@dataclass(frozen=True)
class Adaptation:
    """Which weights are trained; all others are frozen (ExPLoRA, section 4).

    The defaults are ExPLoRA's for a natural-image base: the whole last block, all
    normalisation layers, LoRA of rank 64 on the queries and values of the other
    blocks. The paper does not mention the cls token; the authors' scripts train it.
    Probing is `Adaptation((), norms=False, cls_token=False, adapter=None)`, full
    fine-tuning `Adaptation(modules=('',))`.
    """

    unfreeze: Sequence[int] = (-1,)
    """Blocks that are trained in full, from 0; negative ones count from the end."""
    norms: bool = True
    """Whether all normalisation layers are trained. LayerScale does not count."""
    cls_token: bool = True
    """Whether the cls token is trained, if there is one."""
    adapter: PeftConfig | None = field(default_factory=lora)
    """Any PEFT method, for the layers it names in the other blocks; None for no
    adapter."""
    modules: Sequence[str] = ()
    """Further modules and parameters that are trained in full; '' means the whole
    backbone."""

    def __post_init__(self) -> None:
        """Turn the sequences into tuples, so that they can be compared."""
        object.__setattr__(self, 'unfreeze', tuple(self.unfreeze))
        object.__setattr__(self, 'modules', tuple(self.modules))

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Return the blocks that are trained in full, from 0 and ascending.

        Args:
            depth: How many blocks the backbone has.

        Raises:
            ValueError: If the backbone does not have one of the blocks.
        """
        for index in self.unfreeze:
            if not -depth <= index < depth:
                raise ValueError(
                    f'*unfreeze* names block {index}, this backbone has {depth}: '
                    f'choose from 0 to {depth - 1}, or from -{depth} to -1'
                )
        return tuple(sorted({index % depth for index in self.unfreeze}))

    def name(self, depth: int) -> str:
        """Return the paper's short name without the base, such as `[24]-r64`.

        Args:
            depth: How many blocks the backbone has; the name counts them from 1.
        """
        numbers = ','.join(str(index + 1) for index in self.blocks(depth))
        parts = [f'[{numbers}]']
        if self.adapter is not None:
            kind = adapter_kind(self.adapter)
            # AdaLoRA has another name for its first rank.
            rank = getattr(self.adapter, 'init_r', getattr(self.adapter, 'r', None))
            parts += [kind] if kind != 'LORA' else []
            parts += [f'r{rank}'] if rank else []
        return '-'.join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold and `from_dict` reads."""
        adapter = None
        if self.adapter is not None:
            # The version of PEFT that wrote it is not part of the method.
            values = {
                key: value
                for key, value in self.adapter.to_dict().items()
                if key != 'peft_version'
            }
            adapter = json.loads(json.dumps(values, default=sorted))
        return {
            'unfreeze': list(self.unfreeze),
            'norms': self.norms,
            'cls_token': self.cls_token,
            'adapter': adapter,
            'modules': list(self.modules),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the adaptation that `to_dict` described.

        The values may come from an untrusted file: nothing is imported, and only plain
        values of the expected type are accepted.

        Raises:
            ValueError: If a value is unknown or of the wrong type, or the installed
                PEFT does not know the adapter's method.
        """
        values = dict(values)
        for name, value in values.items():
            if name not in _FIELDS:
                raise ValueError(
                    f'an adaptation has no {printable(name, 60)}: choose from'
                    f' {", ".join(_FIELDS)}'
                )
            expected, good = _FIELDS[name]
            if not good(value):
                raise ValueError(
                    f'*{name}* of the adaptation is {printable(value, 60)}, expected'
                    f' {expected}'
                )
        if values.get('adapter') is not None:
            values['adapter'] = adapter_from_file(values['adapter'])
        return cls(**values)


def _is_list(value: Any, kind: type) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= 10_000
        and all(type(each) is kind for each in value)
    )


# The fields that a file may set: what is expected, and a check of the value.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'unfreeze': ('a list of whole numbers', lambda value: _is_list(value, int)),
    'norms': ('true or false', lambda value: isinstance(value, bool)),
    'cls_token': ('true or false', lambda value: isinstance(value, bool)),
    'adapter': ('fields of an adapter, or none', lambda value: True),
    'modules': ('a list of names', lambda value: _is_list(value, str)),
}


def adapt[M: nn.Module](backbone: M, adaptation: Adaptation) -> M:
    """Make exactly the delta trainable, in place, and return the same backbone.

    The class and the parameter names stay the same, except that a layer with an adapter
    keeps its own weights under `base_layer`. No value changes, nor does the output. The
    delta is float32, whatever the type of the base. The backbone stores the adaptation
    as `record.adapted` and the fingerprint of its base as `record.fingerprint`.

    Args:
        backbone: Any module with a sequence of transformer `blocks`.
        adaptation: What to train.

    Raises:
        TypeError: If the backbone has no sequence of blocks.
        ValueError: If the backbone is already adapted, if a name or index matches
            nothing, if a delta cannot hold the adapter, or if weights that were drawn
            at random would stay frozen. The backbone is then unchanged.
    """
    if adapted(backbone) is not None:
        raise ValueError(
            'this backbone is already adapted: fold its delta in with '
            '`merged(backbone)` and adapt the plain copy'
        )
    blocks = getattr(backbone, 'blocks', None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise TypeError(
            f'{type(backbone).__name__} has no sequence of transformer *blocks*: '
            'adapt a Vision Transformer'
        )
    whole = [blocks[index] for index in adaptation.blocks(len(blocks))]
    trained = _trained(backbone, adaptation, whole)
    _check_drawn(backbone, trained)
    layers: dict[str, nn.Module] = {}
    candidates = _frozen_modules(backbone, blocks, trained)
    if adaptation.adapter is not None and candidates:
        layers = select_layers(adaptation.adapter, candidates)
        check_adapter(adaptation.adapter, layers)

    record = record_of(backbone) or Record()
    record.lineage, record.fingerprint = lineage(backbone), base_fingerprint(backbone)
    base = {id(tensor) for tensor in backbone.state_dict(keep_vars=True).values()}
    size = sum(parameter.numel() for parameter in backbone.parameters())
    frozen = tuple(
        name for name, p in backbone.named_parameters() if not p.requires_grad
    )
    backbone.requires_grad_(False)
    if adaptation.adapter is not None and layers:
        inject(adaptation.adapter, backbone, list(layers))
    for parameter in trained:
        parameter.requires_grad_(True)

    # Adapters may share a tensor between layers: the delta holds it once.
    delta: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in backbone.state_dict(keep_vars=True).items():
        if tensor.requires_grad or id(tensor) not in base:
            delta.setdefault(id(tensor), (name, tensor))
    for _, tensor in delta.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    names = tuple(name for name, _ in delta.values())
    record.adapted = Adapted(adaptation, names, size, frozen)
    host: Any = backbone
    host.record = record
    return backbone


def _trained(
    backbone: nn.Module, adaptation: Adaptation, whole: Sequence[nn.Module]
) -> list[nn.Parameter]:
    """Return the parameters of the plain backbone that are trained."""
    parts = [*whole]
    if adaptation.norms:
        parts += [module for module in backbone.modules() if _is_norm(module)]
    modules = dict(backbone.named_modules())
    parameters = dict(backbone.named_parameters())
    single = []
    for name in adaptation.modules:
        if name in parameters:
            single.append(parameters[name])
        elif name in modules:
            parts.append(modules[name])
        else:
            near = difflib.get_close_matches(name, [*modules, *parameters])
            raise ValueError(
                f'*modules* names {name!r}, which is neither a module nor a parameter '
                f'of {type(backbone).__name__}: did you mean {near or [*modules][1:9]}?'
            )
    token = getattr(backbone, 'cls_token', None)
    if adaptation.cls_token and isinstance(token, nn.Parameter):
        single.append(token)
    return [*single, *(p for part in parts for p in part.parameters())]


def _check_drawn(backbone: nn.Module, trained: Sequence[nn.Parameter]) -> None:
    """Raise if weights that the loaded base lacks would stay random and frozen."""
    whole = {id(parameter) for parameter in trained}
    for name in backbone.drawn if isinstance(backbone, Backbone) else ():
        parameters = backbone.get_submodule(name).parameters()
        if not whole.issuperset(id(parameter) for parameter in parameters):
            raise ValueError(
                f'{name} was drawn at random, since the base has none, and would stay '
                f"frozen: neither base nor delta could restore it; add '{name}' to "
                '*modules*'
            )


def _frozen_modules(
    backbone: nn.Module, blocks: nn.Module, trained: Sequence[nn.Parameter]
) -> dict[str, nn.Module]:
    """Return the modules that an adapter may take: in blocks, not trained in full."""
    inside = {id(module) for module in blocks.modules()}
    whole = {id(parameter) for parameter in trained}
    return {
        name: module
        for name, module in backbone.named_modules()
        if id(module) in inside
        and not whole.issuperset(id(parameter) for parameter in module.parameters())
    }


def _is_norm(module: nn.Module) -> bool:
    return any(kind.__module__ in _NORM_MODULES for kind in type(module).__mro__)


@torch.no_grad()
def merged[M: nn.Module](backbone: M) -> M:
    """Return a plain float32 copy of *backbone* with its delta folded in.

    The copy has the class, the keys and the trainable parameters that the backbone had
    before `adapt`. Its `record.fingerprint` is None: it is a new base, which a second
    delta identifies by the base and the delta that it was made from. A plain backbone
    gives a plain copy. *backbone*, and any module that shares tensors with it, stay
    unchanged.

    Raises:
        ValueError: If `store_frozen` has rounded the base.
    """
    record = record_of(backbone)
    if record is not None and record.rounded:
        raise ValueError(
            'the base is stored rounded (`store_frozen`, *frozen_dtype*): save the'
            ' delta and load it into a newly loaded base with `load_delta`'
        )
    plain = copy.deepcopy(backbone).float()
    change = adapted(plain)
    if change is None:
        return plain
    # Under autocast the products would be rounded to its type.
    with torch.autocast(next(plain.parameters()).device.type, enabled=False):
        for layer in plain.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
    take_off(plain)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name not in change.frozen)
    host: Any = plain
    host.record = replace(
        host.record,
        adapted=None,
        fingerprint=None,
        lineage=lineage_merged(backbone),
    )
    return plain
