"""Checkpoints of MAE, DINOv2, ExPLoRA and timm, converted to and from timm's names."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.models.formats.names import (
    BLOCK,
    LAYER_SCALE,
    OUTER,
    State,
    check_names,
    fuse_qkv,
    is_rest,
    unwrapped,
)

_CHUNKED = re.compile(r'(blocks\.)\d+\.(\d+\.)')


def from_mae(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of MAE (facebookresearch/mae), encoder only or full.

    Args:
        state: Content of the file: the tensors, or a dict with the tensors under
            'model'.

    Returns:
        The backbone's tensors in timm's names, and the rest under its own names:
        `mask_token`, `decoder_*` and a classifier, if any.
    """
    flat = unwrapped(state)
    backbone = {key: value for key, value in flat.items() if not is_rest(key)}
    rest = {key: value for key, value in flat.items() if is_rest(key)}
    return backbone, rest


def from_timm(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a state dict of a timm VisionTransformer.

    Returns:
        The backbone's tensors, and the classifier: `head.*`, `fc_norm.*`.
    """
    return from_mae(state)


def to_timm(
    backbone: Mapping[str, Tensor], rest: Mapping[str, Tensor] | None = None
) -> State:
    """Return the state dict of a timm VisionTransformer.

    Args:
        backbone: The backbone's tensors, with fused or split attention.
        rest: A classifier in timm's names (`head.*`, `fc_norm.*`).

    Raises:
        ValueError: If the rest has parts that timm's models lack.
    """
    rest = rest or {}
    if unknown := [key for key in rest if not key.startswith(('head.', 'fc_norm.'))]:
        raise ValueError(
            f'timm has no name for {", ".join(sorted(unknown))}: leave it out'
        )
    return {**fuse_qkv(backbone), **rest}


def from_dinov2(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of DINOv2 (facebookresearch/dinov2).

    Released files, teacher files (`{'teacher': {'backbone. ...'}}`) and training states
    with chunked blocks are recognised. SwiGLU's w12 and w3 become timm's fc1 and fc2.
    With registers, the position of the class token is added to the token, since timm's
    register models have no position for it.

    Args:
        state: Content of the file: the tensors, or a dict with the tensors under
            'teacher', 'model' or 'state_dict'.

    Returns:
        The backbone's tensors in timm's names, and the rest under its own names:
        `mask_token`, `dino_head.*`, `ibot_head.*`, and the student if there is a
        teacher.
    """
    flat = unwrapped(state)
    prefixes = ('teacher.backbone.', 'student.backbone.', 'backbone.')
    prefix = next((p for p in prefixes if any(k.startswith(p) for k in flat)), '')
    inner, outer = {}, {}
    for key, value in flat.items():
        if key.startswith(prefix):
            inner[key.removeprefix(prefix)] = value
        else:
            outer[key.removeprefix(prefix.removesuffix('backbone.'))] = value
    backbone, rest = from_mae(inner)

    named: State = {}
    for key, value in backbone.items():
        name = _CHUNKED.sub(r'\1\2', key)
        name = name.replace('.mlp.w12.', '.mlp.fc1.').replace('.mlp.w3.', '.mlp.fc2.')
        named[name] = value
    if 'register_tokens' in named:
        table = named['pos_embed']
        named['reg_token'] = named.pop('register_tokens')
        named['cls_token'] = named['cls_token'] + table[:, :1]
        named['pos_embed'] = table[:, 1:]
    return named, rest | outer


def to_dinov2(
    backbone: Mapping[str, Tensor], rest: Mapping[str, Tensor] | None = None
) -> State:
    """Return the tensors under the names of a released DINOv2 file.

    This undoes `from_dinov2`. With registers, the position of the class token stays in
    the token, and its row in the table is zero: the model is the same, but the values
    differ from those of a published file.

    Args:
        backbone: The backbone's tensors in timm's names.
        rest: The rest that `from_dinov2` returned.

    Raises:
        ValueError: If a tensor is missing or does not exist in DINOv2; all are listed.
    """
    state = fuse_qkv(backbone)
    registers = ('reg_token',) if 'reg_token' in state else ()
    check_names(state, 'a DINOv2 checkpoint', OUTER + registers, BLOCK + LAYER_SCALE)
    if registers:
        table = state['pos_embed']
        state['register_tokens'] = state.pop('reg_token')
        state['pos_embed'] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    fc1, fc2 = (state[f'blocks.0.mlp.{name}.weight'] for name in ('fc1', 'fc2'))
    gated = len(fc1) == 2 * fc2.shape[1]
    named: State = {}
    for name, value in state.items():
        if gated:
            name = name.replace('.mlp.fc1.', '.mlp.w12.')
            name = name.replace('.mlp.fc2.', '.mlp.w3.')
        named[name] = value
    return {**named, **(rest or {})}


def from_explora(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of the ExPLoRA authors (LoRA already merged).

    Full files hold the query, key and value projections twice, fused and as `q_proj`,
    `k_proj`, `v_proj`. The fused ones are used; the duplicates go to the rest.

    Args:
        state: Content of the file, with the tensors under 'teacher' or 'model'.

    Returns:
        The backbone's tensors in timm's names, and the rest as in `from_dinov2`.
    """
    flat = unwrapped(state)
    single: State = {}
    duplicates: State = {}
    for key, value in flat.items():
        name = re.sub(r'\battn\.([qkv])_proj\.', r'attn.\1.', key)
        fused = re.sub(r'\battn\.[qkv]\.', 'attn.qkv.', name)
        if name != key and fused in flat:
            duplicates[key] = value
        else:
            single[name] = value
    backbone, rest = from_dinov2(fuse_qkv(single))
    return backbone, rest | duplicates
