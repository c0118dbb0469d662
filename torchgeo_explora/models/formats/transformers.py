"""ViTs of Hugging Face transformers, converted to and from timm's names."""

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
    find_model,
    fuse_qkv,
    split_qkv,
)

# From timm's name of a layer to its name in files of transformers.
_EMBEDDINGS = {
    'cls_token': 'embeddings.cls_token',
    'pos_embed': 'embeddings.position_embeddings',
    'mask_token': 'embeddings.mask_token',
    'reg_token': 'embeddings.register_tokens',
    'patch_embed.proj': 'embeddings.patch_embeddings.projection',
    'norm': 'layernorm',
}
_ATTENTION = {
    'attn.q': 'attention.attention.query',
    'attn.k': 'attention.attention.key',
    'attn.v': 'attention.attention.value',
    'attn.proj': 'attention.output.dense',
}
_DINOV2 = {
    **_ATTENTION,
    **{name: name for name in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')},
    'ls1.gamma': 'layer_scale1.lambda1',
    'ls2.gamma': 'layer_scale2.lambda1',
}
_GATED = {**_DINOV2, 'mlp.fc1': 'mlp.weights_in', 'mlp.fc2': 'mlp.weights_out'}
_VIT = {
    **_ATTENTION,
    'norm1': 'layernorm_before',
    'norm2': 'layernorm_after',
    'mlp.fc1': 'intermediate.dense',
    'mlp.fc2': 'output.dense',
}
# Names of layers in memory in version 5, whose files keep the names above.
_IN_MEMORY = {
    'attention.q_proj': 'attn.q',
    'attention.k_proj': 'attn.k',
    'attention.v_proj': 'attn.v',
    'attention.o_proj': 'attn.proj',
    'mlp.down_proj': 'mlp.fc2',
}
_TIMM = {
    hf: name for table in (_VIT, _GATED, _DINOV2) for name, hf in table.items()
} | _IN_MEMORY
_OUTSIDE = {hf: name for name, hf in _EMBEDDINGS.items()}
_LAYER = re.compile(r'(?:encoder\.)?layers?\.(\d+)\.(.+)')
_DECODER = re.compile(r'decoder\.decoder_(?:encoder\.layer|layers)\.(\d+)\.(.+)')
_GATE = re.compile(r'(blocks\.\d+\.mlp\.)gate_proj\.(weight|bias)')
_MARK = 'embeddings.patch_embeddings.projection.weight'


def is_transformers(state: Mapping[str, Any]) -> bool:
    """Return whether a flat state has the names of transformers' ViTs."""
    return any(key.endswith(_MARK) for key in state)


def from_transformers(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a state dict of Hugging Face transformers.

    It can be of a Dinov2Model (also with registers or SwiGLU), a ViTMAEModel, a
    ViTModel, or a model with a head around one of them, under its names in files or
    those of version 5 in memory.

    Args:
        state: The tensors.

    Returns:
        The backbone's tensors in timm's names, and the rest: mask token and decoder
        in MAE's names, pooler and classifiers under their own.

    Raises:
        ValueError: If there is no ViT in it.
    """
    flat, prefix = find_model(state, _MARK, 'ViT of transformers')
    backbone: State = {}
    rest: State = {}
    for key, value in flat.items():
        inner = key.removeprefix(prefix)
        if key.startswith('decoder.'):
            rest[_decoder_name(key)] = value
        elif not key.startswith(prefix) or inner.startswith(('pooler.', 'classifier.')):
            rest[key] = value
        elif inner == 'embeddings.mask_token':
            rest['mask_token'] = value
        else:
            backbone[timm_name(inner)] = value
    for match in filter(None, map(_GATE.fullmatch, [*backbone])):
        gate, up = (f'{match[1]}{part}_proj.{match[2]}' for part in ('gate', 'up'))
        joined = torch.cat([backbone.pop(gate), backbone.pop(up)])
        backbone[f'{match[1]}fc1.{match[2]}'] = joined
    if 'reg_token' in backbone:
        # As in `from_dinov2`: timm's register models have no position for this token.
        table = backbone['pos_embed']
        backbone['cls_token'] = backbone['cls_token'] + table[:, :1]
        backbone['pos_embed'] = table[:, 1:]
    return fuse_qkv(backbone), fuse_qkv(rest)


def to_transformers(
    backbone: Mapping[str, Tensor],
    rest: Mapping[str, Tensor] | None = None,
    prefix: str = '',
) -> State:
    """Return the tensors under the names in files of transformers.

    These are the names of a Dinov2Model if the backbone has LayerScale (of a
    Dinov2WithRegistersModel with registers), and those of a ViTModel or ViTMAEModel
    otherwise. With registers, the position of the class token stays in the token, and
    its row in the table is zero: the model is the same.

    Args:
        backbone: The backbone's tensors in timm's names.
        rest: The rest that `from_transformers` returned.
        prefix: Prefix of the backbone in a model with a head, such as 'vit.' in a
            ViTMAEForPreTraining.

    Raises:
        ValueError: If a tensor is missing or does not exist in transformers; all are
            listed.
    """
    state, rest = fuse_qkv(backbone), rest or {}
    scaled = any(key.endswith('ls1.gamma') for key in state)
    registers = ('reg_token',) if 'reg_token' in state else ()
    block = BLOCK + LAYER_SCALE if scaled else BLOCK
    kind = 'Dinov2Model' if scaled else 'ViTModel'
    check_names(state, f'a {kind} of transformers', OUTER + registers, block)
    if registers:
        table = state['pos_embed']
        state['pos_embed'] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    fc1, fc2 = (state[f'blocks.0.mlp.{name}.weight'] for name in ('fc1', 'fc2'))
    gated = len(fc1) == 2 * fc2.shape[1]
    layers = (_GATED if gated else _DINOV2) if scaled else _VIT

    named: State = {}
    for key, value in split_qkv(state).items():
        named[f'{prefix}{_file_name(key, "blocks", "encoder.layer", layers)}'] = value
    for key, value in split_qkv(rest).items():
        if key == 'mask_token' and scaled:
            named[f'{prefix}embeddings.mask_token'] = value
        elif key.startswith('decoder_blocks.'):
            name = _file_name(key, 'decoder_blocks', 'decoder.decoder_layers', _VIT)
            named[name] = value
        elif key == 'mask_token' or key.startswith('decoder_'):
            named[f'decoder.{key}'] = value
        elif key.startswith(('head.', 'fc_norm.')):
            raise ValueError(f'a {kind} of transformers has no {key}: leave it out')
        else:
            named[key] = value
    return named


def _layer(name: str) -> tuple[str, str]:
    """Split a tensor's name into layer and kind, such as 'norm' and '.weight'."""
    for kind in ('.weight', '.bias'):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ''


def timm_name(key: str) -> str:
    """Return timm's name of a tensor of a Dinov2Model or ViTModel.

    An unknown name is kept, and loading will list it.
    """
    if match := _LAYER.fullmatch(key):
        layer, kind = _layer(match[2])
        return f'blocks.{match[1]}.{_TIMM.get(layer, layer)}{kind}'
    layer, kind = _layer(key)
    return f'{_OUTSIDE.get(layer, layer)}{kind}'


def _decoder_name(key: str) -> str:
    """Return MAE's name of a tensor of the decoder."""
    if match := _DECODER.fullmatch(key):
        layer, kind = _layer(match[2])
        return f'decoder_blocks.{match[1]}.{_TIMM.get(layer, layer)}{kind}'
    return key.removeprefix('decoder.')


def _file_name(key: str, blocks: str, layers: str, table: Mapping[str, str]) -> str:
    """Return the name in files of a tensor, inside or outside the blocks."""
    match = re.fullmatch(rf'{blocks}\.(\d+)\.(.+)', key)
    layer, kind = _layer(match[2] if match else key)
    if match:
        return f'{layers}.{match[1]}.{table[layer]}{kind}'
    return f'{_EMBEDDINGS.get(layer, layer)}{kind}'
