"""The model card of a published delta."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from torchgeo_explora.adapt import Adaptation, read_delta
from torchgeo_explora.callbacks.cost import cost_line, read_cost
from torchgeo_explora.export.rebuild import outline
from torchgeo_explora.models.zoo.licences import (
    TERMS,
    described,
    is_noncommercial,
    licence_of,
)
from torchgeo_explora.models.zoo.weights import ExploraWeights

# Metadata of training that the card shows, in this order.
_RECIPE = (
    *('objective', 'steps', 'effective_batch', 'images', 'tflop'),
    *('mean', 'std', 'mean_of', 'shares'),
)
# Names that contain MAE, SatMAE or ScaleMAE as a word.
_MAE = re.compile(r'(?i)(?<![a-z])(?:sat|scale)?-?mae(?![a-z])')
_TEMPLATE = """---
{data}
---

# {name}

A delta of [torchgeo-explora](https://arxiv.org/abs/2406.10973): the weights that
changed when the base below was adapted to new imagery without labels ({adaptation}).
It is not a whole model: it needs its base.

| | |
|---|---|
| base | {base} |
| SHA-256 of the base | `{fingerprint}` |
| data | {dataset} |
| adaptation | {adaptation} |
| size | {megabytes:.1f} MB, {tensors} |
{recipe}

## Use

```python
from torchgeo_explora.adapt import merged
from torchgeo_explora.export import from_hub, rebuild

backbone = merged(rebuild(from_hub('{repo}'), weights={weights}))
```

## Scores

{scores}

## Licence

{licence}
"""


def base_licence(base: str) -> str | None:
    """Return the licence of a base's weights, or None if it is not known here.

    Args:
        base: Where the weights come from: a repository on the Hub, a member of
            `ExploraWeights`, or a description.
    """
    published = {str(each): each.meta['license'] for each in list(ExploraWeights)}
    if _MAE.search(base) or 'CC-BY-NC' in published.get(base, ''):
        return 'cc-by-nc-4.0'
    return licence_of(base) if '/' in base else None


def model_card(
    path: str | os.PathLike[str],
    repo: str,
    base: str,
    data: str,
    scores: Mapping[str, float] | None = None,
    licence: str | None = None,
) -> ModelCard:
    """Return the card of a delta.

    The cost of the run is read from the `cost.json` beside the delta, if there is one.

    Args:
        path: A file of `save_delta`.
        repo: Name of the repository, 'user/name'.
        base: Where the weights of the base come from.
        data: What the delta was trained on.
        scores: Measured scores by name. Without scores, the card says that none were
            measured.
        licence: Licence in the Hub's spelling, such as 'cc-by-nc-4.0'; that of the base
            if None.

    Raises:
        ValueError: If the file or the `cost.json` beside it is damaged, the licence is
            not known, or it allows more than the licence of the base.
    """
    metadata, _ = read_delta(path)
    # First, because it checks the arguments that the file states.
    backbone = outline(path)
    model = metadata['arguments'].get('model')
    of_base = base_licence(base)
    # The name of a timm model ends with the name of its weights.
    if _MAE.search(model or ''):
        of_base = 'cc-by-nc-4.0'
    licence = licence or of_base
    if licence is None:
        raise ValueError(
            f'the licence of the base {base} is not known here: name a licence that'
            ' this delta may have, such as cc-by-4.0'
        )
    if of_base and is_noncommercial(of_base) and not is_noncommercial(licence):
        raise ValueError(
            f'the base is non-commercial ({of_base}), and so is everything derived'
            f' from it: {licence!r} would allow more'
        )
    blocks: nn.Module = backbone.get_submodule('blocks')
    adaptation = Adaptation.from_dict(metadata['adaptation'])
    rows = [f'| {key} | {metadata[key]} |' for key in _RECIPE if metadata.get(key)]
    if line := cost_line(read_cost(Path(path).parent)):
        rows.append(f'| cost of the whole run | {line} |')
    measured = [f'- {name}: {value:g}' for name, value in (scores or {}).items()]
    # The Hub knows only some licences; others come with a name and a page.
    terms: dict[str, Any] = {'license': licence}
    if licence in TERMS:
        page = TERMS[licence].page
        terms = {'license': 'other', 'license_name': licence, 'license_link': page}
    header = ModelCardData(
        **terms,
        library_name='torchgeo-explora',
        tags=['torchgeo', 'remote-sensing', 'explora', 'lora'],
        base_model=base if base.count('/') == 1 and ' ' not in base else None,
    )
    return ModelCard(
        _TEMPLATE.format(
            data=header.to_yaml(),
            name=repo.rpartition('/')[2],
            repo=repo,
            base=f'{model}, {base}' if model else base,
            weights=_weights(model, base),
            fingerprint=metadata['base'],
            dataset=data,
            adaptation=adaptation.name(len([*blocks.children()])),
            megabytes=Path(path).stat().st_size / 1e6,
            tensors=f'delta `{metadata["delta"][:12]}`',
            recipe='\n'.join(rows),
            scores='\n'.join(measured) or 'Not measured.',
            licence=_chain(base, of_base, licence),
        )
    )


def _chain(base: str, of_base: str | None, licence: str) -> str:
    lines = [
        f'1. Base ({base}): {described(of_base) if of_base else "see its source"}.',
        f'2. This delta, derived from it: {described(licence)}.',
    ]
    if is_noncommercial(licence):
        lines.append('\nNon-commercial, as are models that this delta is merged into.')
    return '\n'.join(lines)


def _weights(model: str | None, base: str) -> str:
    """Return, as code, the *weights* that a user passes to get the base."""
    if base in map(str, list(ExploraWeights)):
        return repr(base)
    if model and timm.is_model(model):
        config = timm.get_pretrained_cfg(model)
        if config and config.hf_hub_id == base:
            return 'True'
    return "'path/to/base'"
