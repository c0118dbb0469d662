"""A backbone from the description in a file that is not trusted.

A delta, an exported file and a checkpoint name a class and its arguments. Only classes
that are already defined are built, nothing is imported, and only arguments that
describe an architecture reach a constructor: none that names a file, downloads
anything, or asks for more memory than a Vision Transformer can need.
"""

import inspect
import json
import math
import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models.backbones.backbone import PACKAGE, Backbone
from torchgeo_explora.terminal import printable

# Largest sizes that are built: at least twice those of any published ViT.
_COUNTS = {
    'channel_embed_dim': (1, 8192),
    'depth': (1, 128),
    'embed_dim': (1, 8192),
    'in_channels': (1, 4096),
    'num_heads': (1, 256),
    'num_reg_tokens': (0, 256),
    'patch_size': (1, 256),
    'reg_tokens': (0, 256),
    'time_embed_dim': (1, 8192),
}
_NUMBERS = {
    'attn_drop_rate': (0, 1),
    'drop_path_rate': (0, 1),
    'drop_rate': (0, 1),
    'init_values': (0, 1e3),
    'mlp_ratio': (1 / 8192, 64),
    'patch_drop_rate': (0, 1),
    'pos_drop_rate': (0, 1),
    'proj_drop_rate': (0, 1),
    'rope_grid_offset': (-100, 100),
    'rope_jitter_coords': (1, 100),
    'rope_rescale_coords': (1, 100),
    'rope_shift_coords': (0, 100),
    'rope_temperature': (1, 1e9),
}
_FLAGS = {
    *('dynamic_img_pad', 'dynamic_img_size', 'fc_norm', 'final_norm', 'fix_init'),
    *('no_embed_class', 'pre_norm', 'proj_bias', 'qk_norm', 'qkv_bias'),
    *('rope_rotate_half', 'scale_attn_norm', 'scale_mlp_norm'),
}
_NAMES = {
    *('act_layer', 'embed_norm_layer', 'model', 'norm_layer', 'rope_grid_indexing'),
    'weight_init',
}
_LARGEST_SIDE = 16_384
_MOST_TOKENS = 2**18
_MOST_PARAMETERS = 10**10
_LONGEST = 100_000

#: Arguments that no file may set, whatever a constructor takes.
NEVER = {
    *('cache_dir', 'checkpoint', 'checkpoint_path', 'pretrained', 'pretrained_cfg'),
    *('pretrained_cfg_overlay', 'self', 'weights'),
}


def backbone_from_file(
    name: Any,
    arguments: Any,
    weights: WeightsEnum | PathLike[str] | str | bool | None = None,
    source: object = 'the file',
) -> Backbone:
    """Return the backbone that a file describes.

    Args:
        name: Class of the backbone, as `Backbone.public_name` returns it.
        arguments: The constructor's arguments by name.
        weights: What the *user* gives as weights, never what the file says.
        source: The file, for error messages.

    Raises:
        ValueError: If no such backbone is defined, or an argument is unknown, of the
            wrong type or out of range.
    """
    kind = _kind(name, source)
    values = _checked(kind, arguments, source)
    if kind.__module__.startswith(f'{PACKAGE}.'):
        _outline(kind, values, source)
    build: Any = kind
    # Left out if there are no weights: a user's own class may not have the argument.
    backbone: Backbone = (
        build(**values) if weights is None else build(**values, weights=weights)
    )
    return backbone


def outline_from_file(
    name: Any, arguments: Any, source: object = 'the file'
) -> Backbone:
    """Return the backbone that a file describes, without values, for its sizes only.

    Args:
        name: As for `backbone_from_file`.
        arguments: As for `backbone_from_file`.
        source: The file, for error messages.

    Raises:
        ValueError: As for `backbone_from_file`.
    """
    kind = _kind(name, source)
    return _outline(kind, _checked(kind, arguments, source), source)


def statistics_from_file(
    backbone: Backbone, metadata: Mapping[str, Any], source: object = 'the file'
) -> None:
    """Give a backbone the mean and standard deviation that a file holds, if any.

    A backbone that knows the range of its weights also gets the range that the file was
    trained with, to which mean and standard deviation refer, and its bands in the order
    of training.

    Args:
        backbone: It is changed in place.
        metadata: The file's metadata; *mean*, *std* and *bands* are lists in JSON,
            *value_range* two of them.
        source: The file, for error messages.

    Raises:
        ValueError: If mean or standard deviation are not finite numbers, 3 or one per
            channel; if a range does not have 1 or one per channel; or if there is not
            one band name per channel.
    """
    for name in ('mean', 'std'):
        if name not in metadata:
            continue
        values = _parsed(metadata[name])
        if (
            not isinstance(values, list)
            or len(values) not in {3, backbone.in_channels}
            or not all(_is_number(value) for value in values)
            or (name == 'std' and not all(value > 0 for value in values))
        ):
            raise ValueError(
                f'{source} has {name} {printable(metadata[name], 60)}, expected 3 or'
                f' {backbone.in_channels} finite numbers'
                f'{" above 0" if name == "std" else ""}: get the file again'
            )
        setattr(backbone, name, tuple(values))
    if backbone.value_range is not None:
        _recall_images(backbone, metadata, source)


def _recall_images(
    backbone: Backbone, metadata: Mapping[str, Any], source: object
) -> None:
    names = _parsed(metadata.get('bands'))
    if names is not None:
        if not _is_words(names) or len(names) != backbone.in_channels:
            raise ValueError(
                f'{source} has bands {printable(metadata["bands"], 60)}, expected'
                f' {backbone.in_channels} names: get the file again'
            )
        backbone.bands = tuple(names)
        backbone.arguments['bands'] = list(names)
    if 'value_range' not in metadata:
        return
    ends = _parsed(metadata['value_range'])
    count = backbone.in_channels
    if (
        ends is None
        or _misfit('value_range', ends)
        or any(len(end) not in {1, count} for end in ends)
    ):
        raise ValueError(
            f'{source} has value_range {printable(metadata["value_range"], 60)},'
            f' expected low and high with 1 or {count} finite numbers each: get the'
            ' file again'
        )
    low, high = (tuple(end) * (1 if len(end) == count else count) for end in ends)
    backbone.value_range = (low, high)
    if 'value_range' in backbone.arguments:
        backbone.arguments['value_range'] = [list(low), list(high)]


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def argument_names(kind: type[Backbone]) -> set[str]:
    """Return the names of the arguments that a file may give a backbone."""
    names = set(kind.file_arguments)
    for base in kind.__mro__:
        if base is Backbone:
            break
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(vars(base)['__init__']).parameters.values()
        wild = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
        names |= {p.name for p in parameters if p.kind in _BY_NAME}
        if not wild:  # nothing goes on to the next class
            break
    return names - NEVER


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _kind(name: Any, source: object) -> type[Backbone]:
    kind = Backbone.kind(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(
            f'{source} is for the backbone {printable(name, 200)}, and no backbone of'
            ' this name is defined: import the module that defines it first, or build'
            ' it yourself and call load_delta'
        )
    return kind


def _checked(kind: type[Backbone], arguments: Any, source: object) -> dict[str, Any]:
    """Return the arguments; raise if one does not fit this class."""
    title = f'{source} cannot describe a {kind.__name__}'
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f'{title}: its arguments are a {type(arguments).__name__}, expected names'
            ' with values'
        )
    known = argument_names(kind)
    for name, value in arguments.items():
        if name in NEVER:
            raise ValueError(
                f'{title}: a file may not set *{name}*; give weights yourself'
            )
        if name not in known:
            raise ValueError(
                f'{title}: *{printable(name, 60)}* is not an argument that describes'
                f' an architecture; choose from {", ".join(sorted(known)) or "none"}'
            )
        if expected := _misfit(name, value):
            raise ValueError(
                f'{title}: *{name}* is {printable(value, 60)}, expected {expected}'
            )
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise ValueError(f'{title}: {error}') from error
    return dict(arguments)


def _misfit(name: str, value: Any) -> str | None:
    """Return what is expected of an argument; None if its value is good."""
    if value is None and name not in _COUNTS:
        return None  # means the default; otherwise the constructor raises
    if name in _COUNTS:
        low, high = _COUNTS[name]
        good = _is_whole(value) and low <= value <= high
        return None if good else f'a whole number from {low} to {high}'
    if name in _NUMBERS:
        least, most = _NUMBERS[name]
        good = _is_number(value) and least <= value <= most
        return None if good else f'a number from {least:g} to {most:g}'
    if name in _FLAGS:
        return None if isinstance(value, bool) else 'true or false'
    if name in _NAMES:
        good = isinstance(value, str) and re.fullmatch(r'[\w.\-]{0,100}', value)
        return None if good else 'a name of letters, digits, dots and dashes'
    if name == 'image_size':
        sides = value if isinstance(value, list | tuple) else [value]
        good = 1 <= len(sides) <= 2 and all(
            _is_whole(side) and 1 <= side <= _LARGEST_SIDE for side in sides
        )
        return None if good else f'one or two sides of 1 to {_LARGEST_SIDE} pixels'
    if name == 'bands':
        return None if _is_words(value) else 'a list of names'
    if name == 'groups':
        good = isinstance(value, list | tuple) and all(map(_is_words, value))
        return None if good else 'lists of names'
    if name == 'wavelengths':
        return None if _is_numbers(value) else 'a list of finite numbers'
    if name == 'value_range':
        pairs = isinstance(value, list | tuple) and len(value) == 2
        good = pairs and all(map(_is_numbers, value))
        return None if good else 'two lists of finite numbers, low and high'
    # An argument of a user's own class.
    return None if _is_plain(value) else 'plain values, at most 100 kB of JSON'


def _is_words(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= 4096
        and all(isinstance(word, str) and len(word) <= 200 for word in value)
    )


def _is_numbers(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= 4096
        and all(map(_is_number, value))
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_whole(value) and abs(value) < 2**63


def _is_plain(value: Any) -> bool:
    try:
        return len(json.dumps(value, allow_nan=False)) <= _LONGEST
    except (TypeError, ValueError, RecursionError):
        return False


def _outline(
    kind: type[Backbone], values: Mapping[str, Any], source: object
) -> Backbone:
    """Return the backbone without values, once its size is known to be sensible."""
    build: Any = kind
    try:
        with torch.device('meta'):
            backbone: Backbone = build(**values)
    # Sizes that do not fit together can cause any error in a constructor.
    except Exception as error:
        raise ValueError(
            f'{source} describes a {kind.__name__} that cannot be built:'
            f' {printable(error, 500)}'
        ) from error
    size = sum(parameter.numel() for parameter in backbone.parameters())
    tokens = math.prod(backbone.grid)
    for count, most, what in (
        (size, _MOST_PARAMETERS, 'parameters'),
        (tokens, _MOST_TOKENS, 'patches in an image'),
    ):
        if count > most:
            raise ValueError(
                f'{source} describes a {kind.__name__} with {count:,} {what}, expected'
                f' at most {most:,}: if this is intended, build the backbone yourself'
            )
    return backbone
