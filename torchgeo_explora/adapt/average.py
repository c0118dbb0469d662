"""The mean of several deltas as one delta, computed from their files only."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchgeo_explora.adapt.adaptation import Adaptation
from torchgeo_explora.adapt.collection import check_shares
from torchgeo_explora.adapt.delta_file import read_delta, write_delta
from torchgeo_explora.terminal import printable

# Kinds of LoRA whose update is not scale * B A.
_UNLIKE = ('use_dora', 'rank_pattern', 'alpha_pattern', 'lora_bias')
_SCALE = {'r', 'lora_alpha', 'use_rslora'}
_ORIGIN = ('backbone', 'base', 'lineage')


def average_deltas(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    shares: Sequence[float] | None = None,
) -> None:
    """Write the mean of several deltas of one base, in weight space.

    Weights that are trained in full are averaged. LoRA factors are stacked, so that
    their product is exactly the mean of the products; the ranks add up. Other adapters
    cannot be summed like this: `Deltas.average` folds them into a whole backbone.

    Args:
        paths: Files written by `save_delta`.
        output: The file to write.
        shares: Share of each file, which sum to 1; equal shares if None.

    Raises:
        OSError: If *output* cannot be written; an existing file is kept.
        ValueError: If *paths* is empty, a file is damaged, the deltas differ in their
            base or their tensors, an adapter is not plain LoRA, or the shares do not
            fit.
    """
    if not paths:
        raise ValueError('a mean needs at least one delta: *paths* is empty')
    if shares is None:
        shares = [1 / len(paths)] * len(paths)
    if len(shares) != len(paths):
        raise ValueError(
            f'{len(paths)} deltas need {len(paths)} *shares*, got {len(shares)}'
        )
    check_shares(shares)
    found, tensors = zip(*map(read_delta, paths), strict=True)
    for path, metadata, state in zip(paths, found, tensors, strict=True):
        _check_plain(path, metadata)
        _check_alike(paths[0], (found[0], tensors[0]), path, (metadata, state))

    adapters: list[Any] = [metadata['adaptation']['adapter'] for metadata in found]
    total: dict[str, Tensor] = {}
    for key in tensors[0]:
        parts = [state[key] for state in tensors]
        if '.lora_A.' in key:
            total[key] = torch.cat(parts)
        elif '.lora_B.' in key:
            scaled = [
                part * (share * lora_scale(adapter))
                for part, share, adapter in zip(parts, shares, adapters, strict=True)
            ]
            total[key] = torch.cat(scaled, dim=1)
        else:
            total[key] = sum(
                (share * part for part, share in zip(parts, shares, strict=True)),
                torch.zeros_like(parts[0]),
            )
    adaptation = dict(found[0]['adaptation'])
    if adapters[0] is not None:
        rank = sum(adapter['r'] for adapter in adapters)
        # B already contains the scale of its product.
        scale = {'r': rank, 'lora_alpha': rank, 'use_rslora': False}
        adaptation['adapter'] = {**adapters[0], **scale}
    metadata = {
        **{key: found[0][key] for key in _ORIGIN if key in found[0]},
        'arguments': json.dumps(found[0]['arguments']),
        'adaptation': json.dumps(adaptation),
        'mean_of': json.dumps([each['delta'] for each in found]),
        'shares': json.dumps([*shares]),
    }
    write_delta(total, output, metadata)


def lora_scale(adapter: Mapping[str, Any]) -> float:
    """Return the factor by which LoRA scales its product, from its configuration."""
    rank = adapter['r']
    return float(
        adapter['lora_alpha'] / (math.sqrt(rank) if adapter['use_rslora'] else rank)
    )


def _check_plain(path: Any, metadata: Mapping[str, Any]) -> None:
    stored = metadata['adaptation']
    Adaptation.from_dict(stored)
    adapter = stored.get('adapter')
    if adapter is not None and (
        adapter['peft_type'] != 'LORA' or any(adapter.get(key) for key in _UNLIKE)
    ):
        raise ValueError(
            f'the adapter of {path} is not plain LoRA, and a delta file cannot hold the'
            ' mean of other adapters: average whole weights with Deltas(base).average()'
        )
    if 'adapter' not in stored or (adapter and _SCALE - adapter.keys()):
        raise ValueError(
            f'{path} does not describe its adapter in full: save the delta again with'
            ' `save_delta`'
        )


def _check_alike(
    first: Any,
    expected: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    path: Any,
    found: tuple[Mapping[str, Any], Mapping[str, Tensor]],
) -> None:
    base, other = expected[0]['base'], found[0]['base']
    if base != other:
        raise ValueError(
            f'{path} was trained on base {printable(other[:12])}, {first} on'
            f' {printable(base[:12])}: a mean needs deltas of one base'
        )
    if differing := sorted(expected[1].keys() ^ found[1].keys()):
        raise ValueError(
            f'{path} and {first} train different tensors, first'
            f' {printable(differing[0])}: a delta'
            ' file cannot hold their mean; average whole weights with'
            ' Deltas(base).average()'
        )
    for name, tensor in found[1].items():
        if not tensor.is_floating_point():
            raise ValueError(
                f'{path} has {printable(name)} as {tensor.dtype}, and only floats have'
                ' a mean: average whole weights with Deltas(base).average()'
            )
        # LoRA factors are stacked, so they may differ in rank.
        across = 1 if '.lora_A.' in name else 0 if '.lora_B.' in name else None
        shapes = [[*each.shape] for each in (tensor, expected[1][name])]
        if across is not None:
            shapes = [shape[across : across + 1] for shape in shapes]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f'{path} has {printable(name)} of shape {tuple(tensor.shape)},'
                f' {first} of {tuple(expected[1][name].shape)}: a mean needs deltas of'
                ' one architecture'
            )
