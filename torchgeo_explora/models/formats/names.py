"""timm's names of a ViT's tensors, with fused or split attention."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

#: Tensors of a plain ViT outside its blocks, and in each block, in timm's names.
OUTER = (
    *('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'patch_embed.proj.bias'),
    *('norm.weight', 'norm.bias'),
)
BLOCK = tuple(
    f'{layer}.{kind}'
    for layer in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
    for kind in ('weight', 'bias')
)
#: Further tensors of a block of DINOv2.
LAYER_SCALE = ('ls1.gamma', 'ls2.gamma')

_FUSED = re.compile(r'(.*\battn\.)qkv\.(weight|bias)')
_QUERY = re.compile(r'(.*\battn\.)q\.(weight|bias)')
_SINGLE = re.compile(r'(.*\battn\.)([qv])_bias')
# Keys under which training scripts store the tensors in a file.
_WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'teacher', 'student', 'module')
# What torch's module wrappers add to names, at any depth.
_MODULE = re.compile(
    r'(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
_BLOCK = re.compile(r'blocks\.(\d+)\.(.+)')
# Parts of a file that do not belong to the backbone. Only these go to `rest`.
_REST = ('mask_token', 'decoder_', 'dino_head.', 'ibot_head.', 'head.', 'fc_norm.')


def is_rest(name: str) -> bool:
    """Return whether a tensor belongs to a decoder or a head, not to the backbone."""
    return name.startswith(_REST)


def unwrapped(state: Mapping[str, Any]) -> State:
    """Return the tensors of a file, without any wrappers.

    What DistributedDataParallel, torch.compile and FSDP add to names is removed. A
    teacher, whose weights are the ones to keep, is preferred to a student.

    Raises:
        ValueError: If two tensors would get the same name.
    """
    for name in _WRAPPERS:
        if isinstance(state.get(name), Mapping):
            return unwrapped(state[name])
    plain: State = {}
    for key, value in state.items():
        name = _MODULE.sub('', key) if isinstance(key, str) else key
        if name in plain:
            raise ValueError(
                f'the weights hold {name} twice, with and without a wrapper such as'
                ' module. or _orig_mod.: save the state dict of one model'
            )
        plain[name] = value
    return plain


def find_model(state: Mapping[str, Any], mark: str, kind: str) -> tuple[State, str]:
    """Return the tensors of a file, and the prefix of its model's names.

    Args:
        state: The tensors of the model itself or of a model with a head.
        mark: A name that every model of this kind has.
        kind: What the model is, for the error.

    Raises:
        ValueError: If there is no such model.
    """
    flat = unwrapped(state)
    found = next((key for key in flat if key.endswith(mark)), None)
    if found is None:
        raise ValueError(
            f'no {kind} was found: expected the key {mark}, found {[*flat][:3]}'
        )
    return flat, found.removesuffix(mark)


def fuse_qkv(state: Mapping[str, Tensor]) -> State:
    """Return the state with every split `attn.{q,k,v}` joined to timm's `attn.qkv`."""
    fused: State = dict(state)
    for match in filter(None, map(_QUERY.fullmatch, state)):
        parts = [f'{match[1]}{name}.{match[2]}' for name in 'qkv']
        # Under an adapter, q or v has another name: such a layer stays split.
        if all(part in state for part in parts):
            tensors = [fused.pop(part) for part in parts]
            fused[f'{match[1]}qkv.{match[2]}'] = torch.cat(tensors)
        elif match[2] == 'bias' and parts[1] not in state and parts[2] in state:
            # Without a bias of the keys, timm gives the two others separate names.
            for name, part in (('q_bias', parts[0]), ('v_bias', parts[2])):
                fused[f'{match[1]}{name}'] = fused.pop(part)
    return fused


def split_qkv(state: Mapping[str, Tensor]) -> State:
    """Return the state with every `attn.qkv` split into views `attn.{q,k,v}`."""
    split: State = {}
    for key, value in state.items():
        match = _FUSED.fullmatch(key)
        if match:
            # Rows of the fused layer: all of q, then all of k, then all of v.
            for name, part in zip('qkv', value.chunk(3), strict=True):
                split[f'{match[1]}{name}.{match[2]}'] = part
        elif match := _SINGLE.fullmatch(key):
            split[f'{match[1]}{match[2]}.bias'] = value
        else:
            split[key] = value
    return split


def check_names(
    state: Mapping[str, Any], format: str, outer: Sequence[str], block: Sequence[str]
) -> None:
    """Check that a state has exactly the tensors that a format has names for.

    Args:
        state: Tensors in timm's names.
        format: Name of the format, for the error.
        outer: Names outside the blocks.
        block: Names in each block.

    Raises:
        ValueError: If it does not; all missing and all surplus names are listed.
    """
    indices = {int(match[1]) for match in map(_BLOCK.fullmatch, state) if match}
    depth = max(indices, default=-1) + 1
    expected = {*outer, *(f'blocks.{i}.{name}' for i in range(depth) for name in block)}
    missing, surplus = expected - state.keys(), state.keys() - expected
    if missing or surplus:
        raise ValueError(
            f'these weights do not fit {format}:'
            f' missing {", ".join(sorted(missing)) or "nothing"};'
            f' not part of it {", ".join(sorted(surplus)) or "nothing"}'
        )
