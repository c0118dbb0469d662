"""Summaries and comparisons of files of weights, in words."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.adapt import Adaptation, read_delta
from torchgeo_explora.adapt.average import lora_scale
from torchgeo_explora.export.rebuild import outline
from torchgeo_explora.models.checkpoints import from_any
from torchgeo_explora.models.formats.files import read_file, read_metadata


def summarize_file(path: str | os.PathLike[str]) -> str:
    """Return a summary of a delta, a checkpoint or a file of weights.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is damaged, or holds objects other than plain data.
    """
    path = Path(path)
    if is_delta(path):
        metadata, state = read_delta(path)
        title = _title(path, metadata)
        hidden = (
            *('adaptation', 'arguments', 'backbone'),
            *('format', 'format_version', 'metadata_sha256'),
        )
        notes = {k: v for k, v in metadata.items() if k not in hidden and v != ''}
    else:
        content = read_file(path)
        if 'explora' in content:
            state = content['state_dict']
            title, notes = _of_training(content)
        else:
            state, rest = from_any(content)
            title = (
                f'weights, {len(state)} tensors of a backbone and {len(rest)} others'
            )
            notes = {k: v for k, v in read_metadata(path).items() if v != ''}
    numbers = sum(each.numel() for each in state.values() if isinstance(each, Tensor))
    size = path.stat().st_size
    lines = [
        f'{path}: {title}',
        f'  size: {numbers / 1e6:.2f} M parameters, {size / 1e6:.2f} MB',
        *(f'  {key}: {value}' for key, value in sorted(notes.items())),
    ]
    return '\n'.join(lines)


def compare_files(
    first: str | os.PathLike[str], second: str | os.PathLike[str]
) -> list[str]:
    """Return the differences of two files, one line each; none if they are equal.

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
            lines.append(f'{key}: {values[0]} | {values[1]}')
    one, other = (_tensors(Path(path)) for path in (first, second))
    lines += [f'{name}: only in {first}' for name in one if name not in other]
    lines += [f'{name}: only in {second}' for name in other if name not in one]
    for name in one:
        if name not in other:
            continue
        a, b = one[name].double(), other[name].double()
        if a.shape != b.shape:
            lines.append(f'{name}: shape {tuple(a.shape)} | {tuple(b.shape)}')
        elif not torch.equal(a, b):
            distance = (b - a).norm() / a.norm().clamp(min=1e-30)
            lines.append(f'{name}: relative distance {distance:.3g}')
    return lines


def is_delta(path: Path) -> bool:
    """Return whether `save_delta` wrote a file, by its metadata."""
    return 'delta' in read_metadata(path)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors to compare, with LoRA products in place of their factors."""
    if not is_delta(path):
        return from_any(read_file(path))[0]
    metadata, state = read_delta(path)
    adapter = metadata['adaptation']['adapter'] or {}
    for key in [*state]:
        if '.lora_A.' in key and not adapter.get('use_dora'):
            down, up = state.pop(key), state.pop(key.replace('.lora_A.', '.lora_B.'))
            layer = key.partition('.lora_A.')[0]
            state[f'{layer} (update)'] = lora_scale(adapter) * up @ down
    return state


def _of_training(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a title for a checkpoint of a task, and what loading it needs."""
    hyper = content.get('hyper_parameters', {})
    task = hyper.get('_class_path', 'a task').rpartition('.')[2]
    title = f'checkpoint of {task} after {content.get("global_step")} optimizer steps'
    notes = {n: hyper[n] for n in ('model', 'weights', 'delta') if n in hyper}
    return title, {'base': content['explora']['base'], **notes}


def _title(path: Path, metadata: dict[str, Any]) -> str:
    adaptation = Adaptation.from_dict(metadata['adaptation'])
    try:
        depth = len([*outline(path).get_submodule('blocks').children()])
    except ValueError:  # a backbone of another package
        return f'delta of {metadata["backbone"]}'
    arguments = metadata['arguments']
    name = arguments.get('model') or metadata['backbone'].rpartition('.')[2]
    return (
        f'delta {adaptation.name(depth)} of {name}, image size'
        f' {arguments["image_size"]}'
    )
