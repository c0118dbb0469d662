"""Checkpoints of DINOv3 and its family, to and from FAIR's and transformers' names."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.models.formats.names import (
    State,
    find_model,
    fuse_qkv,
    is_rest,
    split_qkv,
)
from torchgeo_explora.models.formats.published import from_dinov2

# From FAIR's name of a part of a block to timm's.
_FAIR = {
    'ls1.gamma': 'gamma_1',
    'ls2.gamma': 'gamma_2',
    'mlp.w1': 'mlp.fc1_g',
    'mlp.w2': 'mlp.fc1_x',
    'mlp.w3': 'mlp.fc2',
}
# From timm's name to the one in files of transformers.
_OUTSIDE = {
    'cls_token': 'embeddings.cls_token',
    'reg_token': 'embeddings.register_tokens',
    'mask_token': 'embeddings.mask_token',
    'patch_embed.proj': 'embeddings.patch_embeddings',
    'norm': 'norm',
}
_LAYERS = {
    'norm1': 'norm1',
    'norm2': 'norm2',
    'attn.q': 'attention.q_proj',
    'attn.k': 'attention.k_proj',
    'attn.v': 'attention.v_proj',
    'attn.proj': 'attention.o_proj',
    'gamma_1': 'layer_scale1.lambda1',
    'gamma_2': 'layer_scale2.lambda1',
    'mlp.fc1': 'mlp.up_proj',
    'mlp.fc1_g': 'mlp.gate_proj',
    'mlp.fc1_x': 'mlp.up_proj',
    'mlp.fc2': 'mlp.down_proj',
}
_BLOCK = re.compile(r'blocks\.(\d+)\.(.+?)(\.weight|\.bias|)')
_LAYER = re.compile(r'(?:model\.)?layer\.(\d+)\.(.+?)(\.weight|\.bias|)')
_MARK = 'embeddings.patch_embeddings.weight'
#: Name of the rotary periods in FAIR's files; they go to the rest.
PERIODS = 'rope_embed.periods'
# What FAIR's files hold in addition to the backbone: another norm for local crops,
# which only training used, and heads of a distillation.
_REST = (PERIODS, 'local_cls_norm.', 'projectors.')


def is_dinov3(state: Mapping[str, Any]) -> bool:
    """Return whether a state has names of FAIR's DINOv3, after any prefix."""
    return any(key.endswith(('storage_tokens', PERIODS)) for key in state)


def is_transformers_dinov3(state: Mapping[str, Any]) -> bool:
    """Return whether a state has the names of transformers' DINOv3ViTModel."""
    return any(key.endswith(_MARK) for key in state)


def from_dinov3(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of DINOv3 (facebookresearch/dinov3) or EUPE.

    Keys have no bias in these models: the one in the checkpoint is masked, and is left
    out. Biases that are zero everywhere, as in the distilled models, are left out too.

    Args:
        state: Content of the file, as for `from_dinov2`.

    Returns:
        The backbone's tensors under the names of timm's Eva, and the rest under its own
        names: `mask_token`, the rotary periods, norms and heads that only training
        uses.

    Raises:
        ValueError: If the bias of the keys is neither masked nor zero.
    """
    flat, rest = from_dinov2(state)
    masks = {key for key in flat if key.endswith('.attn.qkv.bias_mask')}
    backbone: State = {}
    for key, value in flat.items():
        if key in masks:
            continue
        if key.startswith(_REST):
            rest[key] = value
        elif key.endswith('.attn.qkv.bias'):
            layer = key.removesuffix('qkv.bias')
            queries, keys, values = value.chunk(3)
            if f'{key}_mask' not in masks and keys.any():
                raise ValueError(
                    f'{key} has a bias for the keys, which no rotary model of timm has:'
                    ' give weights without one'
                )
            backbone[f'{layer}q_bias'] = queries.contiguous()
            backbone[f'{layer}v_bias'] = values.contiguous()
        elif key == 'storage_tokens':
            backbone['reg_token'] = value
        else:
            match = _BLOCK.fullmatch(key)
            # The rule for DINOv2 has already renamed w3 to fc2.
            part = _FAIR.get(match[2], match[2]) if match else ''
            name = f'blocks.{match[1]}.{part}{match[3]}' if match else key
            backbone[name] = value
    return without_zero_biases(backbone), rest


def to_dinov3(
    backbone: Mapping[str, Tensor], rest: Mapping[str, Tensor] | None = None
) -> State:
    """Return the tensors under the names of a released DINOv3 file.

    This undoes `from_dinov3`; biases that the backbone does not have are zero.

    Args:
        backbone: The backbone's tensors under the names of timm's Eva.
        rest: `mask_token`, the rotary periods and anything else that `from_dinov3`
            returned.

    Raises:
        ValueError: If the rest lacks the first two.
    """
    rest = dict(rest or {})
    if missing := [name for name in ('mask_token', PERIODS) if name not in rest]:
        raise ValueError(
            f'a DINOv3 checkpoint has {" and ".join(missing)}: give them as *rest*'
        )
    names = {timm: fair for fair, timm in _FAIR.items() if fair != 'mlp.w3'}
    gated = any('.mlp.fc1_g.' in key for key in backbone)
    state = fuse_qkv(backbone)
    named: State = {}
    for key, value in state.items():
        match = _BLOCK.fullmatch(key)
        if key == 'reg_token':
            named['storage_tokens'] = value
        elif not match:
            named[key] = value
        elif match[2] not in ('attn.q_bias', 'attn.v_bias'):
            part = names.get(match[2], match[2])
            part = 'mlp.w3' if gated and part == 'mlp.fc2' else part
            named[f'blocks.{match[1]}.{part}{match[3]}'] = value
            if key.endswith('.attn.qkv.weight'):
                layer = key.removesuffix('qkv.weight')
                none = value.new_zeros(len(value) // 3)
                queries = state.get(f'{layer}q_bias', none)
                values = state.get(f'{layer}v_bias', none)
                named[f'{layer}qkv.bias'] = torch.cat([queries, none, values])
                one = torch.ones_like(none)
                named[f'{layer}qkv.bias_mask'] = torch.cat([one, none, one])
    return {**named, **rest}


def from_transformers_dinov3(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a state dict of a DINOv3ViTModel, under its names in files or in memory.

    Args:
        state: The tensors of the model itself or of a model with a head.

    Returns:
        The backbone's tensors under the names of timm's Eva, and the rest: mask token,
        and heads under their own names.

    Raises:
        ValueError: If there is no DINOv3ViTModel in it, or keys have a bias.
    """
    flat, prefix = find_model(state, _MARK, 'DINOv3ViTModel')
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}
    gated = any('.mlp.gate_proj.' in key for key in flat)
    layers = {theirs: ours for ours, theirs in _LAYERS.items()}
    layers['mlp.up_proj'] = 'mlp.fc1_x' if gated else 'mlp.fc1'
    backbone: State = {}
    rest: State = {}
    for key, value in flat.items():
        inner = key.removeprefix(prefix)
        stem = inner.removesuffix('.weight').removesuffix('.bias')
        if match := _LAYER.fullmatch(inner):
            name = f'blocks.{match[1]}.{layers.get(match[2], match[2])}{match[3]}'
            if name.endswith('.attn.k.bias'):
                raise ValueError(
                    f'{key} is a bias for the keys, which no rotary model of timm has:'
                    ' give weights without one'
                )
            backbone[name] = value
        elif inner == _OUTSIDE['mask_token']:
            rest['mask_token'] = value
        elif key.startswith(prefix) and stem in outside:
            backbone[f'{outside[stem]}{inner.removeprefix(stem)}'] = value
        else:
            rest[key] = value
    return without_zero_biases(fuse_qkv(backbone)), rest


def to_transformers_dinov3(
    backbone: Mapping[str, Tensor], rest: Mapping[str, Tensor] | None = None
) -> State:
    """Return the tensors under the names in files of a DINOv3ViTModel.

    Args:
        backbone: The backbone's tensors under the names of timm's Eva.
        rest: What `from_transformers_dinov3` returned. If it has no mask token, which
            only training uses, zeros take its place.

    Raises:
        ValueError: If the backbone or the rest has parts that this model lacks; all are
            listed.
    """
    named: State = {}
    unknown = []
    for key, value in split_qkv(backbone).items():
        match = _BLOCK.fullmatch(key)
        stem = key.removesuffix('.weight').removesuffix('.bias')
        if match and match[2] in _LAYERS:
            named[f'layer.{match[1]}.{_LAYERS[match[2]]}{match[3]}'] = value
        elif not match and stem in _OUTSIDE:
            named[f'{_OUTSIDE[stem]}{key.removeprefix(stem)}'] = value
        else:
            unknown.append(key)
    rest = dict(rest or {})
    mask_token = rest.pop('mask_token', torch.zeros_like(backbone['cls_token']))
    named[_OUTSIDE['mask_token']] = mask_token.reshape(1, 1, -1)
    unknown += [key for key in rest if is_rest(key)]
    if unknown:
        raise ValueError(
            f'a DINOv3ViTModel of transformers has no {", ".join(sorted(unknown))}:'
            ' use export_timm'
        )
    return {**named, **rest}


def refuse_rotary(state: Mapping[str, Tensor], weights: object) -> None:
    """Raise if a state is of a rotary model such as DINOv3.

    Args:
        state: The backbone's tensors under timm's names.
        weights: Where they are from, for the error.

    Raises:
        ValueError: If there is LayerScale under Eva's name and no table of positions.
    """
    if 'pos_embed' not in state and any(key.endswith('.gamma_1') for key in state):
        raise ValueError(
            f'*weights* {weights} are of a rotary model such as DINOv3, without a table'
            ' of positions (pos_embed): use torchgeo_explora.models.RotaryViT, or in a'
            ' task the *model* they belong to, such as vit_large_patch16_dinov3'
        )


def without_zero_biases(state: Mapping[str, Tensor]) -> State:
    """Return a state without the biases of q and v if all of them are zero."""
    biases = [key for key in state if key.endswith(('.attn.q_bias', '.attn.v_bias'))]
    if any(state[key].any() for key in biases):
        return dict(state)
    return {key: value for key, value in state.items() if key not in biases}
