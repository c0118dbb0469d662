"""The base under a delta, as a backbone that goes on working while the delta trains."""

from typing import Any

from torch import nn

from torchgeo_explora.adapt.adapters import take_off
from torchgeo_explora.adapt.delta import adapted
from torchgeo_explora.adapt.teacher import twin


def frozen_base[M: nn.Module](backbone: M) -> M:
    """Return the base of an adapted backbone, in eval mode, for little memory.

    It shares every frozen tensor with *backbone* and has no adapter. Of what is trained
    in full (blocks, norms, the class token) it keeps the values as they are now: of a
    ViT-L with ExPLoRA's default, 4 % of its size. Its own delta is empty, so
    `delta_state_dict`, and with it a checkpoint, leaves it out.

    Args:
        backbone: As `adapt` made it, before the delta moves.

    Raises:
        ValueError: If *backbone* is not adapted, or its base has random values where
            the weights had none.
    """
    change = adapted(backbone)
    if change is None:
        raise ValueError('*backbone* is not adapted: call `adapt` first')
    host: Any = backbone
    drawn = {*host.record.untrained, *getattr(backbone, 'drawn', ())}
    if drawn:
        raise ValueError(
            f'the base has only random values for {", ".join(sorted(drawn))}, which are'
            ' nothing to return to: leave out Gram anchoring (*gram_weight*)'
        )
    anchor: Any = twin(backbone)
    take_off(anchor)
    anchor.record.adapted = change._replace(delta=())
    return anchor
