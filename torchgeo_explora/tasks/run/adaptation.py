"""From a task's arguments to an adaptation, and back to plain values."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from peft import AdaLoraConfig, PeftConfig
from torch import nn

from torchgeo_explora.adapt import Adaptation, adapt, count, lora
from torchgeo_explora.checks import require_positive
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.tasks.run.refusal import told_by_command

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@told_by_command()
def choose_adapter(
    adapter: PeftConfig | Mapping[str, Any] | None, rank: int | None, alpha: int | None
) -> PeftConfig | None:
    """Return the adapter that the arguments of a task describe.

    Args:
        adapter: Any PEFT config, or its plain values from a checkpoint.
        rank: Rank of the default LoRA, 64 if None; 0 for no adapter.
        alpha: The LoRA is scaled by alpha / rank; 1 if None.

    Raises:
        ValueError: If *adapter* is given together with *rank* or *alpha*, or *rank* is
            below 0.
    """
    if adapter is None:
        require_positive('rank', rank or 0, or_zero=True)
        if rank == 0 and alpha is not None:
            raise ValueError('*alpha* scales an adapter, but *rank* 0 means none')
        return None if rank == 0 else lora(rank or 64, 1 if alpha is None else alpha)
    if rank is not None or alpha is not None:
        raise ValueError(
            '*rank* and *alpha* describe the default LoRA: with *adapter* given,'
            ' set them there (`r`, `lora_alpha`)'
        )
    if isinstance(adapter, Mapping):
        if 'class_path' in adapter:
            raise ValueError(
                f'*adapter* {adapter["class_path"]} does not take the arguments'
                f' {dict(adapter.get("init_args") or {})}: see its documentation'
            )
        adapter = Adaptation.from_dict({'adapter': adapter}).adapter
    return adapter


def plain(value: Any) -> Any:
    """Return an argument of a task as a value that a checkpoint may hold.

    A checkpoint must load with `weights_only=True`.

    Args:
        value: A backbone, a PEFT config, an enum, a group of options, or anything
            plain.
    """
    if isinstance(value, Backbone):
        # Lists instead of tuples, as in a configuration.
        arguments = json.loads(json.dumps(value.arguments))
        return {'class_path': value.public_name(), 'init_args': arguments}
    if isinstance(value, PeftConfig):
        return Adaptation(adapter=value).to_dict()['adapter']
    if isinstance(value, Enum):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return json.loads(json.dumps(asdict(value)))
    return value


def as_options[T: 'DataclassInstance'](default: T, given: T | Mapping[str, Any]) -> T:
    """Return a group of options, with tuples where a file has lists.

    Args:
        default: Values of the fields that are not given.
        given: A group, or some of its fields by name, as a checkpoint holds them.

    Raises:
        ValueError: If a field is unknown.
    """
    values = dict(given) if isinstance(given, Mapping) else asdict(given)
    known = [field.name for field in fields(default)]
    if unknown := values.keys() - known:
        raise ValueError(
            f'{type(default).__name__} has no {", ".join(sorted(unknown))}: choose from'
            f' {", ".join(known)}'
        )
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return replace(default, **tuples)


def make_trainable(student: nn.Module, adaptation: Adaptation) -> None:
    """Adapt a backbone for pre-training, in place.

    Raises:
        ValueError: If nothing would be trained, or the adapter changes its ranks.
    """
    if isinstance(adaptation.adapter, AdaLoraConfig):
        raise ValueError(
            '*adapter* AdaLoraConfig removes ranks on a schedule, which pre-training'
            ' does not have: use LoraConfig here, AdaLoRA in ExploraClassificationTask'
        )
    adapt(student, adaptation)
    if not count(student)[0]:
        raise ValueError(
            'nothing in the backbone would train: give *unfreeze*, *norms*,'
            ' *cls_token*, *modules* or *rank*'
        )
