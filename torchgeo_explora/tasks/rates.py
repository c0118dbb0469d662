"""Learning rates by layer."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from torchgeo_explora.models.backbone import Backbone

#: Without weight decay though they have three dimensions.
_STILL = ('cls_token', 'pos_embed')


def layer_groups(
    backbone: Backbone,
    others: Iterable[nn.Parameter],
    rate: float,
    decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return AdamW's groups of what trains, with rates that fall towards the input.

    MAE's fine-tuning: of a ViT of L blocks the embeddings are layer 0, block i is layer
    i + 1, the rest is layer L + 1; the rate of layer l is rate * decay^(L + 1 - l).
    Vectors, class token and positions have no weight decay.

    Args:
        backbone: The ViT.
        others: Parameters beside it, which have the whole rate.
        rate: Learning rate of the last layer.
        decay: 1 for one rate everywhere.
        weight_decay: Of the others.
    """
    blocks: Any = backbone.blocks
    last = len(blocks) + 1
    layers = {id(p): 0 for p in backbone.parameters()}
    layers |= {id(p): last for p in backbone.norm.parameters()}
    for index, block in enumerate(blocks):
        layers |= {id(p): index + 1 for p in block.parameters()}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    named = [*backbone.named_parameters(), *(('', parameter) for parameter in others)]
    for name, parameter in named:
        if parameter.requires_grad:
            layer = layers.get(id(parameter), last)
            still = parameter.ndim < 2 or name in _STILL
            group = groups.setdefault(
                (layer, still),
                {
                    'params': [],
                    'lr': rate * decay ** (last - layer),
                    'weight_decay': 0.0 if still else weight_decay,
                },
            )
            group['params'].append(parameter)
    return [groups[key] for key in sorted(groups)]
