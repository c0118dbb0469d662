"""A backbone from the file of its delta."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import load_delta, read_delta_metadata
from torchgeo_explora.models import Backbone
from torchgeo_explora.models.formats.files import read_metadata


def rebuild(
    path: str | os.PathLike[str],
    weights: WeightsEnum | os.PathLike[str] | str | bool = True,
) -> Backbone:
    """Return the backbone that a delta was saved from, adapted.

    Its `mean` and `std` are those that the delta was trained with. A delta over another
    one takes the file that `export_timm` wrote of that one.

    Args:
        path: A file of `save_delta`.
        weights: The base's weights, as the backbone takes them: a path, an enum or its
            name, or True for timm's own.

    Raises:
        FileNotFoundError: If a file is missing or the weights cannot be downloaded.
        ValueError: If the delta is damaged, or the weights are not its base.
    """
    kind, arguments = _kind(path)
    backbone = kind(**arguments, weights=weights)
    if isinstance(weights, str | os.PathLike) and Path(weights).is_file():
        _recall_lineage(backbone, read_metadata(Path(weights)))
    load_delta(backbone, path)
    _recall_statistics(backbone, read_delta_metadata(path))
    return backbone


def reopen(path: str | os.PathLike[str]) -> Backbone:
    """Return the plain backbone that `export_timm` wrote.

    Args:
        path: The file, which names the kind of backbone and its arguments.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is cut short, or does not say what backbone it is of.
    """
    metadata = read_metadata(Path(path))
    kind: Any = Backbone.kind(metadata.get('backbone', ''))
    if kind is None or 'arguments' not in metadata:
        raise ValueError(
            f'{path} does not say what backbone it is of: give a delta, or a file that'
            ' export_timm or `explora merge` wrote'
        )
    arguments = json.loads(metadata['arguments'])
    backbone: Backbone = kind(**arguments, weights=Path(path))
    _recall_lineage(backbone, metadata)
    _recall_statistics(backbone, metadata)
    return backbone


def outline(path: str | os.PathLike[str]) -> Backbone:
    """Return the plain backbone of a delta without values, for its sizes alone."""
    kind, arguments = _kind(path)
    with torch.device('meta'):
        return kind(**arguments)


def _kind(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    metadata = read_delta_metadata(path)
    name = metadata['backbone']
    kind = Backbone.kind(name)
    if kind is None:
        raise ValueError(
            f'{path} is a delta of {name}, and no backbone of this name is defined:'
            ' import the module that defines it first (`explora --import MODULE ...`),'
            ' or build it yourself and call load_delta'
        )
    return kind, metadata['arguments']


def _recall_lineage(backbone: Any, metadata: Mapping[str, str]) -> None:
    """Let a backbone with the weights of a file know what these were folded from."""
    folded = metadata.get('lineage')
    # The file's word counts for its own tensors alone.
    record = backbone.record
    if folded and metadata.get('weights') == record.fingerprint:
        record.lineage, record.fingerprint = folded, None


def _recall_statistics(backbone: Any, metadata: Mapping[str, str]) -> None:
    for name in ('mean', 'std'):
        if name in metadata:
            setattr(backbone, name, tuple(json.loads(metadata[name])))
