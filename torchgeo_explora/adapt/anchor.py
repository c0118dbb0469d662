"""The base under a delta, as a backbone to use while the delta is trained."""

from typing import Any

from torch import nn

from torchgeo_explora.adapt.adapters import take_off
from torchgeo_explora.adapt.delta import adapted
from torchgeo_explora.adapt.teacher import twin


def frozen_base[M: nn.Module](backbone: M) -> M:
    """Return the base of an adapted backbone, in eval mode, for little memory.

    It shares every frozen tensor with *backbone* and has no adapter. Whatever is
    trained in full (blocks, norms, the class token) is copied with its present values:
    for a ViT-L with ExPLoRA's default, 4 % of its size. Its own delta is empty, so
    `delta_state_dict`, and hence a checkpoint, leaves it out.

    Args:
        backbone: As `adapt` returned it, before any training step.

    Raises:
        ValueError: If *backbone* is not adapted, or some of its base is random because
            the loaded weights lacked it.
    """
    change = adapted(backbone)
    if change is None:
        raise ValueError('*backbone* is not adapted: call `adapt` first')
    host: Any = backbone
    drawn = {*host.record.untrained, *getattr(backbone, 'drawn', ())}
    if drawn:
        raise ValueError(
            f'the base has only random values for {", ".join(sorted(drawn))}, so there'
            ' is nothing to anchor to: leave out Gram anchoring (*gram_weight*)'
        )
    anchor: Any = twin(backbone)
    take_off(anchor)
    anchor.record.adapted = change._replace(delta=())
    return anchor
