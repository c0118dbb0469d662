"""Checkpoints of SatMAE's group-channel and temporal models, converted to our names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.models.formats.names import State
from torchgeo_explora.models.formats.published import from_mae


def from_satmae_group(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of SatMAE's group-channel model, MAE or classifier.

    The classifier's `channel_cls_embed` is added to the class token.

    Args:
        state: Content of the file: the tensors, or a dict with the tensors under
            'model'.

    Returns:
        The tensors of a `GroupChannelViT`, and the rest under its own names:
        `mask_token`, `decoder_*`, `head.*`, `fc_norm.*`.

    Raises:
        ValueError: If it is a checkpoint of another model.
    """
    backbone, rest = from_mae(state)
    if 'channel_embed' not in backbone:
        raise ValueError(
            "this checkpoint has no channel_embed, so it is not from SatMAE's"
            ' group-channel model: use from_satmae_temporal or from_mae'
        )
    return fold_class_code(backbone), rest


def fold_class_code(state: Mapping[str, Tensor]) -> State:
    """Return the state with `channel_cls_embed`, if any, added to the class token.

    The code is added to the last channels of the token only.
    """
    folded: State = dict(state)
    code = folded.pop('channel_cls_embed', None)
    if code is not None:
        token = folded['cls_token']
        padding = (token.shape[-1] - code.shape[-1], 0)
        folded['cls_token'] = token + torch.nn.functional.pad(code, padding)
    return folded


def from_satmae_temporal(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of SatMAE's temporal model, MAE or classifier.

    Args:
        state: Content of the file: the tensors, or a dict with the tensors under
            'model'.

    Returns:
        The tensors of a `TemporalViT`, and the rest under its own names:
        `mask_token`, `decoder_*`, `head.*`, `fc_norm.*`.

    Raises:
        ValueError: If it is a checkpoint of another model.
    """
    backbone, rest = from_mae(state)
    narrow = backbone['pos_embed'].shape[-1] < backbone['cls_token'].shape[-1]
    if not narrow or 'channel_embed' in backbone:
        raise ValueError(
            'the position table of this checkpoint leaves no room for a time code, so'
            " it is not from SatMAE's temporal model: use from_satmae_group or from_mae"
        )
    return backbone, rest
