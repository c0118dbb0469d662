"""What the adaptation did to the weights of each block."""

from collections import defaultdict

from torchgeo_explora.adapt import merged
from torchgeo_explora.models.backbones.backbone import Backbone


def block_changes(before: Backbone, after: Backbone) -> list[dict[str, float]]:
    """Return the relative change of every layer in every block.

    The change is ||W' - W|| / ||W||, with Frobenius norms over all parameters of a
    layer (weight and bias). For a projection with LoRA, it is the norm of the LoRA
    product relative to the weight's.

    Args:
        before: The base.
        after: The same backbone with a delta, adapted or merged.

    Returns:
        A dictionary per block, from the layer's name in the block (`attn.q`, `mlp.fc1`)
        to its change, and `all` for the block as a whole. 0 for a layer whose weights
        are 0.

    Raises:
        ValueError: If the two do not have the same architecture.
    """
    old, new = (merged(each).state_dict() for each in (before, after))
    if {k: v.shape for k, v in old.items()} != {k: v.shape for k, v in new.items()}:
        raise ValueError(
            'the two backbones have weights of different names or shapes: give a delta'
            ' of the same base'
        )
    changes = []
    for index in range(len(before.blocks)):
        prefix = f'blocks.{index}.'
        moved: dict[str, float] = defaultdict(float)
        size: dict[str, float] = defaultdict(float)
        for name in old:
            if not name.startswith(prefix) or not old[name].is_floating_point():
                continue
            layer = name.removeprefix(prefix).rpartition('.')[0]
            # LayerScale is a parameter of the block itself in some models.
            layer = layer or name.removeprefix(prefix)
            difference = (new[name].double() - old[name].double()).square().sum()
            for key in (layer, 'all'):
                moved[key] += difference.item()
                size[key] += old[name].double().square().sum().item()
        changes.append(
            {key: (moved[key] / size[key]) ** 0.5 if size[key] else 0.0 for key in size}
        )
    return changes
