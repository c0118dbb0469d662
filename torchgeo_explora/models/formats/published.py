"""Names of MAE, DINOv2, ExPLoRA and timm <-> those of our backbones, dict -> dict."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from torchgeo_explora.models.formats.names import (
    BLOCK,
    LAYER_SCALE,
    OUTER,
    State,
    fuse_qkv,
    is_rest,
    require,
    split_qkv,
    unwrapped,
)

_CHUNKED = re.compile(r'(blocks\.)\d+\.(\d+\.)')
_INDEXED = re.compile(r'blocks\.(\d+)\.')
# What DINOv2's training states hold beside each backbone, once for each.
_HEADS = ('dino_head.', 'ibot_head.')


def from_mae(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of MAE (facebookresearch/mae), encoder only or full.

    Args:
        state: The file's content: the tensors, or a dict with them under 'model'.

    Returns:
        The backbone's tensors in timm names, and the rest under their own names:
        `mask_token`, `decoder_*` and a classifier, if any.
    """
    flat = unwrapped(state)
    backbone = {key: value for key, value in flat.items() if not is_rest(key)}
    rest = {key: value for key, value in flat.items() if is_rest(key)}
    return backbone, rest


def to_mae(
    backbone: Mapping[str, Tensor], rest: Mapping[str, Tensor] | None = None
) -> State:
    """Return the tensors of an MAE checkpoint, which stand under 'model' in its files.

    Args:
        backbone: The backbone's tensors in timm names.
        rest: Mask token, decoder and classifier, for a full checkpoint.

    Raises:
        ValueError: If a tensor is missing or has no name in MAE; all are listed.
    """
    state = fuse_qkv(backbone)
    require(state, 'a checkpoint of MAE', OUTER, BLOCK)
    return {**state, **(rest or {})}


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
        ValueError: If the rest has parts that timm's models do not have.
    """
    rest = rest or {}
    if unknown := [key for key in rest if not key.startswith(('head.', 'fc_norm.'))]:
        raise ValueError(
            f'timm has no names for {", ".join(sorted(unknown))}: leave them out'
        )
    return {**fuse_qkv(backbone), **rest}


def from_dinov2(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of DINOv2 (facebookresearch/dinov2).

    Takes released files, teacher files (`{'teacher': {'backbone. ...'}}`) and training
    states with chunked blocks. SwiGLU's w12, w3 become timm's fc1, fc2. With registers,
    the class token absorbs its position row: timm's register models have no such row.

    Args:
        state: The file's content: the tensors, or a dict with them under 'teacher',
            'model' or 'state_dict'.

    Returns:
        The backbone's tensors in timm names, and the rest under their own names:
        `mask_token`, `dino_head.*`, `ibot_head.*`, and a student beside its teacher.
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
    backbone: Mapping[str, Tensor],
    rest: Mapping[str, Tensor] | None = None,
    prefix: str = '',
    block_chunks: int = 0,
) -> State:
    """Return the tensors of a DINOv2 checkpoint, undoing `from_dinov2`.

    With registers, the class token keeps its position inside and its row is zero: the
    same model, but not the bits of a published file.

    Args:
        backbone: The backbone's tensors in timm names.
        rest: What else `from_dinov2` found.
        prefix: '' for a released file, 'backbone.' for a teacher file (its tensors
            stand under 'teacher'), 'teacher.backbone.' for a training state.
        block_chunks: Number of chunks of blocks in a training state, 0 for none.

    Raises:
        ValueError: If a tensor is missing or has no name in DINOv2; all are listed.
    """
    state = fuse_qkv(backbone)
    registers = ('reg_token',) if 'reg_token' in state else ()
    require(state, 'a checkpoint of DINOv2', OUTER + registers, BLOCK + LAYER_SCALE)
    if registers:
        table = state['pos_embed']
        state['register_tokens'] = state.pop('reg_token')
        state['pos_embed'] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    depth = sum(key.endswith('ls1.gamma') for key in state)
    size = depth // block_chunks if block_chunks else 0
    fc1, fc2 = (state[f'blocks.0.mlp.{name}.weight'] for name in ('fc1', 'fc2'))
    gated = len(fc1) == 2 * fc2.shape[1]

    named: State = {}
    for key, value in state.items():
        name = key
        if gated:
            name = name.replace('.mlp.fc1.', '.mlp.w12.')
            name = name.replace('.mlp.fc2.', '.mlp.w3.')
        if size and (match := _INDEXED.match(name)):
            name = f'blocks.{int(match[1]) // size}.{name.removeprefix("blocks.")}'
        named[f'{prefix}{name}'] = value
    owner = prefix.removesuffix('backbone.')
    for key, value in (rest or {}).items():
        inside = owner if key.startswith(_HEADS) else prefix
        named[f'{inside}{key}' if is_rest(key) else key] = value
    return named


def from_explora(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of the ExPLoRA authors (LoRA already merged).

    Full files hold each query, key and value projection twice, fused and as `q_proj`,
    `k_proj`, `v_proj`: the fused one is used, the duplicates are in the rest.

    Args:
        state: The file's content, with the tensors under 'teacher' or 'model'.

    Returns:
        The backbone's tensors in timm names, and the rest as in `from_dinov2`.
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


def to_explora(
    backbone: Mapping[str, Tensor],
    rest: Mapping[str, Tensor] | None = None,
    prefix: str = '',
    projections: Literal['fused', 'split', 'both'] = 'fused',
) -> State:
    """Return the tensors of a checkpoint as ExPLoRA's authors release them.

    Args:
        backbone: The backbone's tensors in timm names.
        rest: What else `from_explora` found.
        prefix: '' for an encoder-only file (its tensors stand under 'model'),
            'backbone.' for a full one (under 'teacher').
        projections: Query, key and value as `qkv`, as `q_proj`, `k_proj`, `v_proj`, or
            both, as in full files.

    Raises:
        ValueError: If a tensor is missing or has no name in DINOv2; all are listed.
    """
    state = to_dinov2(backbone, rest, prefix)
    if projections == 'fused':
        return state
    split = {
        re.sub(r'\battn\.([qkv])\.', r'attn.\1_proj.', key): value
        for key, value in split_qkv(state).items()
    }
    return state | split if projections == 'both' else split
