"""Published weight files <-> the names and shapes of our backbones, dict -> dict."""

import argparse
import pickle
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor
from torchvision.models._api import WeightsEnum

State = dict[str, Tensor]

_FUSED = re.compile(r'(.*\battn\.)qkv\.(weight|bias)')
_QUERY = re.compile(r'(.*\battn\.)q\.(weight|bias)')
_CHUNKED = re.compile(r'(blocks\.)\d+\.(\d+\.)')
_SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')
# Parts that a file may hold beside the backbone: they go to `rest`, nothing else does.
_REST = ('mask_token', 'decoder_', 'dino_head.', 'ibot_head.', 'head.', 'fc_norm.')


def fuse_qkv(state: Mapping[str, Tensor]) -> State:
    """Return the state with every split `attn.{q,k,v}` joined to timm's `attn.qkv`."""
    fused: State = dict(state)
    for match in filter(None, map(_QUERY.fullmatch, state)):
        parts = [f'{match[1]}{name}.{match[2]}' for name in 'qkv']
        # Under an adapter q or v has another name: such a layer stays as it is.
        if all(part in state for part in parts):
            tensors = [fused.pop(part) for part in parts]
            fused[f'{match[1]}qkv.{match[2]}'] = torch.cat(tensors)
    return fused


def split_qkv(state: Mapping[str, Tensor]) -> State:
    """Return the state with every fused `attn.qkv` as our `attn.{q,k,v}` (views)."""
    split: State = {}
    for key, value in state.items():
        match = _FUSED.fullmatch(key)
        if match:
            # Rows of the fused layer: all of q, then all of k, then all of v.
            for name, part in zip('qkv', value.chunk(3), strict=True):
                split[f'{match[1]}{name}.{match[2]}'] = part
        else:
            split[key] = value
    return split


def from_mae(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of MAE (facebookresearch/mae), encoder only or full.

    Args:
        state: The file's content: the tensors, or a dict with them under 'model'.

    Returns:
        The backbone's tensors in timm names, and the rest under their own names:
        `mask_token`, `decoder_*` and a classifier, if any.
    """
    backbone: State = {}
    rest: State = {}
    for key, value in _unwrapped(state).items():
        (rest if key.startswith(_REST) else backbone)[key] = value
    return backbone, rest


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
    flat = _unwrapped(state)
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


def from_explora(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of the ExPLoRA authors (LoRA already merged).

    Full files hold each query, key and value projection twice, fused and as `q_proj`,
    `k_proj`, `v_proj`: the fused one is used, the duplicates are in the rest.

    Args:
        state: The file's content, with the tensors under 'teacher' or 'model'.

    Returns:
        The backbone's tensors in timm names, and the rest as in `from_dinov2`.
    """
    flat = _unwrapped(state)
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


def read_state(
    weights: WeightsEnum | PathLike[str] | str | bool,
    model: str,
    in_channels: int = 3,
) -> tuple[State, State]:
    """Read published weights in the names of timm.

    Args:
        weights: True for timm's own weights of `model` at their native size; a path to
            a .safetensors, .pth, .pt or .bin file with the names of DINOv2, MAE, timm
            or ExPLoRA; the name of a timm model for its own; a torchvision weights
            enum, or the name of one that `torchgeo.models.get_weight` knows.
        model: Name of the timm model, used where `weights` is True.
        in_channels: Channels wanted. Weights of 3 channels are repeated and rescaled
            to another number, or summed to 1, by timm's rule.

    Returns:
        The backbone's tensors, and the rest: mask token, decoder and heads.

    Raises:
        FileNotFoundError: If the weights are not at hand and cannot be downloaded.
        ValueError: If `weights` names nothing known, or the file holds more than data.
    """
    if weights is True:
        state = _from_timm(model)
    elif isinstance(weights, WeightsEnum):
        state = _from_enum(weights)
    elif isinstance(weights, PathLike) or Path(str(weights)).suffix in _SUFFIXES:
        state = _from_file(Path(weights))  # type: ignore[arg-type]
    elif timm.is_model(str(weights)):
        state = _from_timm(str(weights))
    else:
        state = _from_enum(_named(str(weights)))

    # ExPLoRA's names include DINOv2's, and those MAE's and timm's: a rule leaves alone
    # what it does not know, so one call serves all and needs no guess at the format.
    backbone, rest = from_explora(state)
    kernel = backbone.get('patch_embed.proj.weight')
    if kernel is not None and kernel.shape[1] == 3 != in_channels:
        adapted = adapt_input_conv(in_channels, kernel)
        backbone['patch_embed.proj.weight'] = adapted
    return backbone, rest


def _unwrapped(state: Mapping[str, Any]) -> State:
    """Return the tensors of a file, whatever it wraps them in."""
    for name in ('model', 'state_dict', 'teacher'):
        if isinstance(state.get(name), Mapping):
            return _unwrapped(state[name])
    return dict(state)


def _from_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f'weights file {path} does not exist: give the path of a downloaded'
            f' checkpoint ({", ".join(_SUFFIXES)})'
        )
    if path.suffix == '.safetensors':
        return load_file(path)
    try:
        # Training scripts store their arguments beside the tensors: plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'weights file {path} holds Python objects beside tensors, which are not'
            ' loaded because they can run code: if you trust the file, open it with'
            ' torch.load(path, weights_only=False) and save its state dict alone'
        ) from error


def _from_timm(model: str) -> Mapping[str, Any]:
    try:
        vit = timm.create_model(model, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        config = timm.models.get_pretrained_cfg(model)
        hub = config.hf_hub_id if config else None
        if not hub:
            raise FileNotFoundError(
                f'timm has no weights for model {model!r}: give the path of a'
                ' checkpoint as weights, or weights=None for random ones'
            ) from error
        raise FileNotFoundError(
            f'could not get the weights of {model!r}: download model.safetensors from'
            f' https://huggingface.co/{hub} and give its path as weights, or fetch it'
            f' into {HF_HUB_CACHE} with: hf download {hub} model.safetensors'
        ) from error
    return vit.state_dict()


def _from_enum(weights: WeightsEnum) -> Mapping[str, Any]:
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / 'checkpoints'
        raise FileNotFoundError(
            f'could not get {weights}: download {weights.url} into {folder}, or give'
            ' the path of the file as weights'
        ) from error


def _named(name: str) -> WeightsEnum:
    # Slow to import, and needed for names only.
    from torchgeo.models import get_weight

    try:
        return get_weight(name)
    except ValueError as error:
        raise ValueError(
            f'weights {name!r} is neither a file ({", ".join(_SUFFIXES)}) nor a name'
            " like 'ViTSmall16_Weights.SENTINEL2_ALL_MOCO' that"
            ' torchgeo.models.get_weight knows'
        ) from error
