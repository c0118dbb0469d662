"""Summaries and comparisons of weight files, as text."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.adapt import Adaptation, read_delta
from torchgeo_explora.adapt.average import lora_scale
from torchgeo_explora.export.rebuild import outline
from torchgeo_explora.models import Backbone
from torchgeo_explora.models.checkpoints import from_any
from torchgeo_explora.models.formats.files import read_file, read_metadata
from torchgeo_explora.models.zoo.licences import described, licence_of
from torchgeo_explora.terminal import printable

# Metadata keys that no other kind of file has.
_OF_DELTAS = {'delta', 'adaptation', 'metadata_sha256'}


def summarize_file(path: str | os.PathLike[str]) -> str:
    """Return a summary of a delta, a checkpoint or a file of weights.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is damaged, or holds objects other than plain data.
    """
    path = Path(path)
    state: Mapping[str, Tensor]
    if is_delta(path):
        metadata, state = read_delta(path)
        title = _title(path, metadata)
        hidden = (
            *('adaptation', 'arguments', 'backbone'),
            *('format', 'format_version', 'metadata_sha256'),
        )
        notes = {k: v for k, v in metadata.items() if k not in hidden and v != ''}
        notes |= _licence(metadata['arguments'].get('model'))
    else:
        content = read_file(path)
        if 'explora' in content:
            title, state, notes = _of_training(path, content)
        else:
            state, rest = _weights(path, content)
            title = (
                f'weights, {len(state)} tensors of a backbone and {len(rest)} others'
            )
            notes = {k: v for k, v in read_metadata(path).items() if v != ''}
            notes |= _licence(path.name)
    numbers = sum(each.numel() for each in state.values() if isinstance(each, Tensor))
    size = path.stat().st_size
    lines = [
        f'{path}: {title}',
        f'  size: {numbers / 1e6:.2f} M parameters, {size / 1e6:.2f} MB',
        *(
            f'  {printable(key, 100)}: {printable(value, 2000)}'
            for key, value in sorted(notes.items())
        ),
    ]
    return '\n'.join(lines)


def compare_files(
    first: str | os.PathLike[str], second: str | os.PathLike[str]
) -> list[str]:
    """Return the differences between two files, one line each; none if they are equal.

    Tensors are compared by the relative distance |b - a| / |a|. LoRA factors are
    compared by their product, since different factors can make the same update.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If one is damaged, holds objects other than plain data, or only one
            of them is a delta.
    """
    kinds = [is_delta(Path(path)) for path in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f'{first if kinds[0] else second} is a delta and the other file is not:'
            ' merge it into its base with `explora merge` first'
        )
    lines = []
    notes = [read_metadata(Path(path)) for path in (first, second)]
    for key in sorted({*notes[0], *notes[1]} - {'metadata_sha256'}):
        values = [each.get(key, 'nothing') for each in notes]
        if values[0] != values[1]:
            shown = ' | '.join(printable(value, 2000) for value in values)
            lines.append(f'{printable(key, 100)}: {shown}')
    one, other = (_tensors(Path(path)) for path in (first, second))
    lines += [f'{printable(n)}: only in {first}' for n in one if n not in other]
    lines += [f'{printable(n)}: only in {second}' for n in other if n not in one]
    for name in one:
        if name not in other:
            continue
        a, b = one[name].double(), other[name].double()
        if a.shape != b.shape:
            lines.append(
                f'{printable(name)}: shape {tuple(a.shape)} | {tuple(b.shape)}'
            )
        elif not torch.equal(a, b):
            distance = (b - a).norm() / a.norm().clamp(min=1e-30)
            lines.append(f'{printable(name)}: relative distance {distance:.3g}')
    return lines


def is_delta(path: Path) -> bool:
    """Return whether `save_delta` wrote a file, judging by its metadata."""
    # A delta that lost some of its metadata still counts as one, and is then refused.
    return not _OF_DELTAS.isdisjoint(read_metadata(path))


def _weights(path: Path, content: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the tensors of a backbone and the others, naming the file in errors."""
    try:
        return from_any(content)
    except ValueError as error:
        raise ValueError(f'{path} holds no weights of a backbone: {error}') from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors to compare, with LoRA products in place of their factors."""
    if not is_delta(path):
        return _weights(path, read_file(path))[0]
    metadata, state = read_delta(path)
    adapter = Adaptation.from_dict(metadata['adaptation']).to_dict()['adapter'] or {}
    plain = adapter.get('peft_type') == 'LORA' and not adapter['use_dora']
    for key in [*state]:
        other = key.replace('.lora_A.', '.lora_B.')
        if '.lora_A.' in key and plain and other in state:
            down, up = state.pop(key), state.pop(other)
            layer = key.partition('.lora_A.')[0]
            state[f'{layer} (update)'] = lora_scale(adapter) * up @ down
    return state


def _of_training(
    path: Path, content: Mapping[str, Any]
) -> tuple[str, Mapping[str, Tensor], dict[str, Any]]:
    """Return a title for a checkpoint of one of our tasks, its tensors, and notes."""
    state, ours = content.get('state_dict'), content['explora']
    hyper = content.get('hyper_parameters', {})
    if (
        not all(isinstance(part, Mapping) for part in (state, ours, hyper))
        or not all(isinstance(tensor, Tensor) for tensor in state.values())  # type: ignore[union-attr]
        or 'base' not in ours
    ):
        raise ValueError(
            f'{path} is not a checkpoint that a task of torchgeo_explora wrote, though'
            ' it is marked as one: get the file again'
        )
    task = printable(hyper.get('_class_path', 'a task'), 200).rpartition('.')[2]
    steps = printable(content.get('global_step'), 20)
    title = f'checkpoint of {task} after {steps} optimizer steps'
    # The base's file is not among the arguments, since it may move.
    if 'base_weights' in content:
        hyper = {**hyper, 'weights': content['base_weights']}
    notes = {n: hyper[n] for n in ('model', 'weights', 'delta') if n in hyper}
    return title, state, {'base': ours['base'], **notes}  # type: ignore[return-value]


def _licence(weights: object) -> dict[str, str]:
    """Return a note on the licence of published weights, empty if it is not known."""
    found = licence_of(weights) if isinstance(weights, str) else None
    return {f'licence of {weights}': described(found)} if found else {}


def _title(path: Path, metadata: dict[str, Any]) -> str:
    """Return a description of a delta, from its own metadata only."""
    adaptation = Adaptation.from_dict(metadata['adaptation'])
    kind = metadata['backbone']
    if Backbone.kind(kind) is None:  # a backbone of another package
        return f'delta of {printable(kind, 200)}'
    plain = outline(path)
    depth = len([*plain.get_submodule('blocks').children()])
    name = metadata['arguments'].get('model') or kind.rpartition('.')[2]
    return (
        f'delta {printable(adaptation.name(depth))} of {printable(name, 200)}, image'
        f' size {[*plain.image_size]}'
    )
