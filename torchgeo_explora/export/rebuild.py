"""A backbone from the file of its delta."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import load_delta, read_delta_metadata
from torchgeo_explora.models import Backbone
from torchgeo_explora.models.backbones.from_file import (
    backbone_from_file,
    outline_from_file,
    statistics_from_file,
)
from torchgeo_explora.models.formats.files import read_metadata


def rebuild(
    path: str | os.PathLike[str],
    weights: WeightsEnum | os.PathLike[str] | str | bool = True,
) -> Backbone:
    """Return the backbone that a delta was saved from, adapted.

    Its `mean` and `std` are those that the delta was trained with. For a delta that was
    trained on top of another one, *weights* is the file that `export_timm` wrote with
    that other one merged.

    Args:
        path: A file of `save_delta`.
        weights: The base's weights, as the backbone takes them: a path, an enum or its
            name, or True for timm's own.

    Raises:
        FileNotFoundError: If a file is missing or the weights cannot be downloaded.
        ValueError: If the delta is damaged, or the weights are not its base.
    """
    metadata = read_delta_metadata(path)
    backbone = backbone_from_file(
        metadata['backbone'], metadata['arguments'], weights, source=path
    )
    if isinstance(weights, str | os.PathLike) and Path(weights).is_file():
        _recall_lineage(backbone, read_metadata(Path(weights)))
    load_delta(backbone, path)
    statistics_from_file(backbone, metadata, path)
    return backbone


def reopen(path: str | os.PathLike[str]) -> Backbone:
    """Return the plain backbone that `export_timm` wrote.

    Args:
        path: The file, which names the kind of backbone and its arguments.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is cut short, or does not say which backbone it is for.
    """
    metadata = read_metadata(Path(path))
    if 'backbone' not in metadata or 'arguments' not in metadata:
        raise ValueError(
            f'{path} does not say which backbone it is for: give a delta, or a file'
            ' that export_timm or `explora merge` wrote'
        )
    backbone = backbone_from_file(
        metadata['backbone'], _parsed(metadata['arguments']), Path(path), source=path
    )
    if metadata.get('weights', backbone.record.fingerprint) != (
        backbone.record.fingerprint
    ):
        raise ValueError(
            f'the tensors of {path} are not those that were saved: copy or download it'
            ' again'
        )
    _recall_lineage(backbone, metadata)
    statistics_from_file(backbone, metadata, path)
    return backbone


def outline(path: str | os.PathLike[str]) -> Backbone:
    """Return the plain backbone of a delta, with shapes but without values.

    Only the file itself is read.

    Raises:
        ValueError: If the delta is damaged, or its backbone is not defined.
    """
    metadata = read_delta_metadata(path)
    return outline_from_file(metadata['backbone'], metadata['arguments'], path)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _recall_lineage(backbone: Any, metadata: Mapping[str, str]) -> None:
    """Record in a backbone which deltas were merged into the weights of its file."""
    folded = metadata.get('lineage')
    # What the file says holds only for its own tensors.
    record = backbone.record
    if folded and metadata.get('weights') == record.fingerprint:
        record.lineage, record.fingerprint = folded, None
