"""Names of SatMAE's group-channel and temporal models <-> ours, dict -> dict."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.models.formats.names import BLOCK, OUTER, State, fuse_qkv, require
from torchgeo_explora.models.formats.published import from_mae


def from_satmae_group(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of SatMAE's group-channel model, MAE or classifier.

    The classifier's `channel_cls_embed` is added to the class token.

    Args:
        state: The file's content: the tensors, or a dict with them under 'model'.

    Returns:
        The tensors of a `GroupChannelViT`, and the rest under their own names:
        `mask_token`, `decoder_*`, `head.*`, `fc_norm.*`.

    Raises:
        ValueError: If it is a checkpoint of another kind.
    """
    backbone, rest = from_mae(state)
    if 'channel_embed' not in backbone:
        raise ValueError(
            "this checkpoint has no channel_embed, so it is not of SatMAE's"
            ' group-channel model: use from_satmae_temporal or from_mae'
        )
    return fold_class_code(backbone), rest


def to_satmae_group(
    backbone: Mapping[str, Tensor], rest: Mapping[str, Tensor] | None = None
) -> State:
    """Return the tensors of SatMAE's group-channel MAE, undoing `from_satmae_group`.

    A classifier's `channel_cls_embed` stays inside the class token: the same model.

    Args:
        backbone: The tensors of a `GroupChannelViT`.
        rest: Mask token and decoder, for a full checkpoint; or a classifier.

    Raises:
        ValueError: If a tensor is missing or has no name there; all are listed.
    """
    state, rest = fuse_qkv(backbone), rest or {}
    groups = {key for key in state if key.startswith('patch_embed.')}
    groups |= {f'patch_embed.0.proj.{kind}' for kind in ('weight', 'bias')}
    shared = (name for name in OUTER if not name.startswith('patch_embed.'))
    outer = {*shared, *groups, 'channel_embed'}
    # SatMAE's classifier has fc_norm on the mean token and no final norm.
    if 'fc_norm.weight' in rest and 'norm.weight' not in state:
        outer -= {'norm.weight', 'norm.bias'}
    require(state, "SatMAE's group-channel model", [*outer], BLOCK)
    return {**state, **rest}


def fold_class_code(state: Mapping[str, Tensor]) -> State:
    """Return the state with `channel_cls_embed`, if any, added to the class token.

    The code is added to the last channels of the class token and to nothing else.
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
        state: The file's content: the tensors, or a dict with them under 'model'.

    Returns:
        The tensors of a `TemporalViT`, and the rest under their own names:
        `mask_token`, `decoder_*`, `head.*`, `fc_norm.*`.

    Raises:
        ValueError: If it is a checkpoint of another kind.
    """
    backbone, rest = from_mae(state)
    narrow = backbone['pos_embed'].shape[-1] < backbone['cls_token'].shape[-1]
    if not narrow or 'channel_embed' in backbone:
        raise ValueError(
            'this checkpoint has no position table beside a time code, so it is not of'
            " SatMAE's temporal model: use from_satmae_group or from_mae"
        )
    return backbone, rest


def to_satmae_temporal(
    backbone: Mapping[str, Tensor], rest: Mapping[str, Tensor] | None = None
) -> State:
    """Return the tensors of SatMAE's temporal model, undoing `from_satmae_temporal`.

    Args:
        backbone: The tensors of a `TemporalViT`.
        rest: Mask token and decoder, for a full checkpoint; or a classifier.

    Raises:
        ValueError: If a tensor is missing or has no name there; all are listed.
    """
    state, rest = fuse_qkv(backbone), rest or {}
    outer = set(OUTER)
    if 'fc_norm.weight' in rest and 'norm.weight' not in state:
        outer -= {'norm.weight', 'norm.bias'}
    require(state, "SatMAE's temporal model", [*outer], BLOCK)
    return {**state, **rest}
