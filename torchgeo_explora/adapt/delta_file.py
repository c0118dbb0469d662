"""The delta as a file."""

import copy
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchgeo_explora.adapt.adaptation import Adaptation, adapt
from torchgeo_explora.adapt.delta import (
    adapted,
    base_fingerprint,
    delta_state_dict,
    lineage,
)
from torchgeo_explora.adapt.from_file import adapter_fields
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.from_file import NEVER, argument_names
from torchgeo_explora.models.formats.files import sort_header
from torchgeo_explora.models.formats.fingerprint import fingerprint
from torchgeo_explora.terminal import printable
from torchgeo_explora.version import __version__
from torchgeo_explora.writing import replacing

_FORMAT = 'torchgeo-explora-delta'
# Later minor versions ('1.2') only add what older ones may ignore.
_FORMAT_VERSION = 1
_MINOR_VERSION = 0
_LONGEST_JSON = 1_000_000
_JSON = ('arguments', 'adaptation')
_REQUIRED = ('format_version', 'backbone', 'base', 'delta', 'metadata_sha256', *_JSON)
_RESERVED = (
    *('format', 'format_version', 'version', 'backbone', 'base', 'lineage', 'delta'),
    *('metadata_sha256', *_JSON),
)


def save_delta(
    backbone: nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the delta of *backbone* as float32 safetensors.

    The metadata name the backbone and its arguments, the adaptation, the SHA-256 of
    the base, of the delta and of the metadata, and the package version. The file is
    written completely or not at all.

    Args:
        backbone: An adapted backbone, or its twin.
        path: The file, `*.safetensors`; its folder is created if missing.
        metadata: Further strings to store in the file.

    Raises:
        OSError: If the file cannot be written; an existing file is kept.
        ValueError: If the backbone is not adapted, a tensor is not finite, or a name
            in *metadata* is reserved.
    """
    change = adapted(backbone)
    if change is None:
        raise ValueError('this backbone has no delta: call `adapt` on it first')
    if taken := set(metadata or {}).intersection(_RESERVED):
        raise ValueError(f'*metadata* uses reserved names: rename {sorted(taken)}')
    tensors = {}
    for name, tensor in delta_state_dict(backbone).items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f'delta tensor {name} is not finite: the training diverged, go back '
                'to an earlier checkpoint'
            )
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.to('cpu', kind).contiguous()
    origin = {
        'backbone': kind_name(backbone),
        'arguments': json.dumps(arguments_of(backbone)),
        'adaptation': json.dumps(change.adaptation.to_dict()),
        'base': base_fingerprint(backbone) or '',
        'lineage': lineage(backbone) or '',
    }
    write_delta(tensors, path, {**(metadata or {}), **origin})


def kind_name(backbone: nn.Module) -> str:
    """Return the name of a backbone's class, as files store it."""
    if isinstance(backbone, Backbone):
        return backbone.public_name()
    return f'{type(backbone).__module__}.{type(backbone).__qualname__}'


def arguments_of(backbone: nn.Module) -> dict[str, Any]:
    """Return the constructor's arguments of a backbone; none for other modules."""
    return backbone.arguments if isinstance(backbone, Backbone) else {}


def write_delta(
    tensors: dict[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors as a delta file.

    Args:
        tensors: The delta, on the CPU.
        path: The file, `*.safetensors`.
        metadata: Where they come from, as in `save_delta`, and further strings.

    Raises:
        OSError: If the file cannot be written; an existing file is kept.
    """
    header = {
        **metadata,
        'format': _FORMAT,
        'format_version': str(_FORMAT_VERSION),
        'version': __version__,
        'delta': fingerprint(tensors),
    }
    header['metadata_sha256'] = _seal(header)
    with replacing(path) as part:
        save_file(tensors, part, metadata=header)
        sort_header(part)


def load_delta[M: nn.Module](backbone: M, path: str | os.PathLike[str]) -> M:
    """Put a delta on the base it was trained on, in place; return the backbone.

    A plain backbone is adapted as the file says. Base, keys and shapes are checked
    before anything changes; the training resolution may differ.

    Args:
        backbone: A backbone with the base's weights, or one that is already adapted
            in the same way.
        path: A file written by `save_delta`.

    Raises:
        ValueError: If the file is not a complete delta, is damaged, or was made for
            another base, another adaptation or other shapes.
    """
    metadata = read_delta_metadata(path)
    base = base_fingerprint(backbone)
    # A merged base may be rounded differently on another machine: compare its lineage.
    folded = lineage(backbone) or ''
    if base != metadata['base'] and (not folded or folded != metadata.get('lineage')):
        raise ValueError(
            f'{path}: this delta was trained on base'
            f' {printable(metadata["base"][:12])}, this backbone is '
            f'{(base or "without values")[:12]}: load the same weights'
        )
    _check_groups(backbone, metadata['arguments'])
    _check_rotary(backbone, metadata['arguments'])
    adaptation = Adaptation.from_dict(metadata['adaptation'])
    plain = adapted(backbone) is None
    if not plain:
        _check_adaptation(backbone, adaptation)
    # A view shares every tensor: an error here leaves the backbone itself unchanged.
    host = adapt(view(backbone), adaptation) if plain else backbone
    places = delta_state_dict(host)
    expected = {name: tuple(tensor.shape) for name, tensor in places.items()}
    with safe_open(path, framework='pt') as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        wrong = sorted(
            name
            for name in {*expected, *found}
            if expected.get(name) != found.get(name)
        )
        if wrong:
            name = wrong[0]
            raise ValueError(
                f'{len(wrong)} tensors of {path} do not fit this backbone, first '
                f'{printable(name)}: expected {expected.get(name, "none")}, found '
                f'{found.get(name, "none")}; build the backbone with the arguments in '
                "the file's metadata"
            )
    tensors = read_delta(path)[1]
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != places[name].is_floating_point():
            raise ValueError(
                f'{path} has {name} as {tensor.dtype}, expected {places[name].dtype}:'
                ' get the file again'
            )
    if plain:
        adapt(backbone, adaptation)
    with torch.no_grad():
        for name, tensor in delta_state_dict(backbone).items():
            tensor.copy_(tensors[name])
    return backbone


def _check_rotary(backbone: nn.Module, stored: Mapping[str, Any]) -> None:
    # Positions are computed, so the weights do not show a difference.
    here, there = (
        {
            name: value
            for name, value in arguments.items()
            # Varying the coordinates in training does not change the function.
            if name.startswith('rope_') and not name.endswith('_coords')
        }
        for arguments in (arguments_of(backbone), stored)
    )
    if here != there:
        raise ValueError(
            f"the delta has rotary settings {printable(there)} on top of its model's"
            f' own, this backbone has {here}: build it with the settings of the delta'
        )


def _check_groups(backbone: nn.Module, stored: Mapping[str, Any]) -> None:
    # Groups with the same numbers of bands have weights of the same shape, whatever the
    # bands are.
    here = arguments_of(backbone).get('groups')
    if here != stored.get('groups'):
        raise ValueError(
            'the delta is for the groups of bands '
            f'{printable(stored.get("groups"))}, this '
            f'backbone has {here}: build it with the groups of the delta'
        )


def _check_adaptation(backbone: nn.Module, stored: Adaptation) -> None:
    host: Any = backbone
    depth = len(host.blocks)
    present = host.record.adapted.adaptation
    plain = [
        {**adaptation.to_dict(), 'unfreeze': adaptation.blocks(depth)}
        for adaptation in (present, stored)
    ]
    if differing := [key for key in plain[0] if plain[0][key] != plain[1][key]]:
        raise ValueError(
            f'the backbone is adapted as {present.name(depth)}, the delta as '
            f'{stored.name(depth)}; they differ in {", ".join(differing)}: load the '
            'delta into a plain backbone'
        )


def view[M: nn.Module](module: M) -> M:
    """Return a copy whose tensors share their values with *module*."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            parameter.detach(), requires_grad=parameter.requires_grad
        )
    return copy.deepcopy(module, memo)


def read_delta(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata and the tensors of a delta file, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short, is not a delta, has a newer format, or
            holds anything other than what `save_delta` wrote.
    """
    metadata = read_delta_metadata(path)
    tensors = load_file(path)
    if fingerprint(tensors) != metadata['delta']:
        raise ValueError(
            f'the tensors of {path} are not those that were saved: copy or download '
            'it again'
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            if tensor.dtype != torch.float32:
                raise ValueError(
                    f'{path} has {printable(name)} as {tensor.dtype}, and a delta is'
                    ' float32: save it again with `save_delta`'
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f'{path} has values in {printable(name)} that are not finite: take'
                    ' the delta of an earlier checkpoint'
                )
    return metadata, tensors


def read_delta_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata that `save_delta` stored with the tensors.

    `arguments` and `adaptation` are dictionaries, everything else is a string. No
    other file is read, and nothing is built.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short, is not a delta, has a newer format, or its
            metadata were changed or do not describe a valid adaptation.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no delta at {path}')
    try:
        with safe_open(path, framework='pt') as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f'{path} is cut short or is not a safetensors file ({error}): copy or '
            'download it again'
        ) from error
    if metadata.get('format') != _FORMAT:
        raise ValueError(f'{path} is not a delta: give a file that `save_delta` wrote')
    seal = _seal(metadata)
    minor = _version(path, metadata.get('format_version', ''))
    wrong = [key for key in _REQUIRED if key not in metadata]
    for key in _JSON:
        text = metadata.get(key, '')
        try:
            metadata[key] = json.loads(text) if len(text) <= _LONGEST_JSON else None
        except (ValueError, RecursionError):
            metadata[key] = None
        if not isinstance(metadata[key], dict) and key not in wrong:
            wrong.append(key)
    if wrong or metadata['metadata_sha256'] != seal:
        reason = f'wrong {", ".join(wrong)}' if wrong else 'their SHA-256 differs'
        raise ValueError(
            f'the metadata of {path} are not those that were saved ({reason}): copy or '
            'download it again'
        )
    if minor > _MINOR_VERSION:
        _leave_out_unknown(path, metadata)
    try:
        Adaptation.from_dict(metadata['adaptation'])
    except ValueError as error:
        raise ValueError(
            f'{path} has an adaptation that is refused: {error}'
        ) from error
    return metadata


def _version(path: str | os.PathLike[str], text: str) -> int:
    """Return the minor version of a file's format; refuse a newer major version."""
    found = re.fullmatch(r'(\d{1,6})(?:\.(\d{1,6}))?', text, re.ASCII)
    if found is None or int(found[1]) < 1:
        raise ValueError(
            f'the metadata of {path} are not those that were saved (wrong'
            f' format_version {printable(text, 60)!r}): copy or download it again'
        )
    major, minor = int(found[1]), int(found[2] or 0)
    if major > _FORMAT_VERSION:
        raise ValueError(
            f'{path} has delta format {text}, this version reads '
            f'{_FORMAT_VERSION}: upgrade torchgeo-explora'
        )
    return minor


def _leave_out_unknown(path: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
    """Remove what a newer minor version of the format has added, with a warning."""
    kind = Backbone.kind(metadata['backbone'])
    parts: list[tuple[dict[str, Any], set[str] | None]] = [
        (metadata['arguments'], argument_names(kind) if kind else None),
        (metadata['adaptation'], {field.name for field in fields(Adaptation)}),
    ]
    adapter = metadata['adaptation'].get('adapter')
    if isinstance(adapter, dict):
        parts.append((adapter, adapter_fields(adapter.get('peft_type'))))
    left: list[str] = []
    for values, known in parts:
        if known is None:
            continue
        # What a file may never set is kept here, and refused later.
        for name in [*values]:
            if name not in known and name not in NEVER:
                del values[name]
                left.append(printable(name, 60))
    if left:
        warnings.warn(
            f'{path} was written by a newer version; this version does not know, and'
            f' leaves out: {", ".join(left[:10])}',
            stacklevel=4,
        )


def _seal(metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of all metadata except this SHA-256."""
    rest = {key: value for key, value in metadata.items() if key != 'metadata_sha256'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
