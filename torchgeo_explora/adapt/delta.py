"""The delta of a module, and the identity of the base under it."""

from torch import Tensor, nn

from torchgeo_explora.models.backbones.record import Adapted, record_of
from torchgeo_explora.models.formats.fingerprint import fingerprint


def adapted(module: nn.Module) -> Adapted | None:
    """Return how `adapt` changed *module* itself, None for any other module."""
    record = record_of(module)
    return None if record is None else record.adapted


def count(backbone: nn.Module) -> tuple[int, int]:
    """Return the number of parameters of the delta, and of the base without adapter.

    Their ratio is the share that is trained: 6.2 % of a ViT-L for ExPLoRA's default.
    For a module that is not adapted: the trainable parameters, and all of them.
    """
    sizes = {name: p.numel() for name, p in backbone.named_parameters()}
    record = adapted(backbone)
    if record is None:
        trained = (p.numel() for p in backbone.parameters() if p.requires_grad)
        return sum(trained), sum(sizes.values())
    return sum(sizes.get(key, 0) for key in record.delta), record.base_parameters


def delta_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return *module*'s state dict without the base of any adapted part of it.

    For an adapted backbone or its twin, this is the delta. For an objective or a task,
    it is all that a checkpoint has to hold. The tensors are the module's own, as in
    `state_dict`. A module without adapted parts gives its whole state dict.
    """
    state: dict[str, Tensor] = module.state_dict()
    for name, part in module.named_modules():
        if (record := adapted(part)) is not None:
            prefix = f'{name}.' if name else ''
            base = set(part.state_dict(prefix=prefix))
            base -= {prefix + key for key in record.delta}
            state = {key: value for key, value in state.items() if key not in base}
    return dict(state)


def base_fingerprint(backbone: nn.Module) -> str | None:
    """Return the fingerprint of the weights under *backbone*'s delta.

    It was recorded when published weights were loaded or when the backbone was adapted.
    For a plain backbone without a record, it is computed from the present weights. None
    for a backbone without values (meta device).
    """
    record = record_of(backbone)
    if record is not None and record.fingerprint is not None:
        return record.fingerprint
    if any(parameter.is_meta for parameter in backbone.parameters()):
        return None
    # Under the names in which the weights were published (fused qkv).
    names = getattr(backbone, 'canonical_state_dict', backbone.state_dict)
    return fingerprint(names())


def lineage(backbone: nn.Module) -> str | None:
    """Return how `merged` made the base under *backbone*'s delta.

    It is 'base+delta': the fingerprint of a base, followed by that of each delta that
    was folded into it. None for a base whose weights were loaded directly.
    """
    record = record_of(backbone)
    if record is None or (record.adapted is None and record.fingerprint is not None):
        return None  # in the second case, weights have been loaded since
    return record.lineage


def lineage_merged(backbone: nn.Module) -> str | None:
    """Return the lineage that *backbone* has once its delta is folded in."""
    origin = lineage(backbone)
    if adapted(backbone) is None:
        return origin
    origin = origin or base_fingerprint(backbone)
    return f'{origin}+{fingerprint(delta_state_dict(backbone))}'
