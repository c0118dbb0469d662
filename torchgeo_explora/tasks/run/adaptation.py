"""From a task's arguments to an adaptation and to statistics of images."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from peft import AdaLoraConfig, PeftConfig
from torch import nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import Adaptation, adapt, count, lora


def choose_adapter(
    adapter: PeftConfig | dict[str, Any] | None, rank: int | None, alpha: int | None
) -> PeftConfig | None:
    """Return the adapter that the arguments of a task describe.

    Args:
        adapter: Any PEFT config, or its plain values from a checkpoint.
        rank: Rank of the default LoRA, 64 if None; 0 for no adapter.
        alpha: Its scaling is alpha / rank; 1 if None.

    Raises:
        ValueError: If *adapter* comes together with *rank* or *alpha*.
    """
    if adapter is None:
        if rank == 0 and alpha is not None:
            raise ValueError('*alpha* scales an adapter, and *rank* 0 means none')
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


def plain_arguments(
    weights: WeightsEnum | str | bool | None,
    adapter: PeftConfig | dict[str, Any] | None,
) -> dict[str, Any]:
    """Return weights and adapter as values that a checkpoint may hold.

    A checkpoint must load with `weights_only=True`.
    """
    if isinstance(adapter, PeftConfig):
        adapter = Adaptation(adapter=adapter).to_dict()['adapter']
    return {
        'weights': str(weights) if isinstance(weights, str | Enum) else weights,
        'adapter': adapter,
    }


def adaptation(
    arguments: Mapping[str, Any], adapter: PeftConfig | None, modules: Sequence[str]
) -> Adaptation:
    """Return the adaptation that the arguments of a task describe.

    Args:
        arguments: With *unfreeze*, *norms* and *cls_token*.
        adapter: What `choose_adapter` returned.
        modules: Names of modules and parameters that train whole besides.
    """
    return Adaptation(
        unfreeze=tuple(arguments['unfreeze']),
        norms=arguments['norms'],
        cls_token=arguments['cls_token'],
        adapter=adapter,
        modules=tuple(modules),
    )


def make_trainable(student: nn.Module, adaptation: Adaptation) -> None:
    """Adapt a backbone for pre-training, in place.

    Raises:
        ValueError: If nothing would train, or the adapter's ranks would have to move.
    """
    if isinstance(adaptation.adapter, AdaLoraConfig):
        raise ValueError(
            '*adapter* AdaLoraConfig takes ranks away by a schedule, which pre-training'
            ' does not have: take LoraConfig here, AdaLoRA in ExploraClassificationTask'
        )
    adapt(student, adaptation)
    if not count(student)[0]:
        raise ValueError(
            'nothing of the backbone would train: give *unfreeze*, *norms*,'
            ' *cls_token*, *modules* or *rank*'
        )


def for_channels(statistic: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a statistic of a base's channels for as many as there are.

    Where the numbers differ, every channel gets the mean.
    """
    if len(statistic) == channels:
        return tuple(statistic)
    return (sum(statistic) / len(statistic),) * channels
