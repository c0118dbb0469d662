"""Compare what a delta records about its run with what a task does."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

from torchgeo_explora.augment import spell_band
from torchgeo_explora.models.backbones.tokens import POOLINGS
from torchgeo_explora.terminal import printable

#: Entries of a delta's metadata that are JSON.
_JSON = ('value_range', 'bands', 'quantize', 'crop_fraction')


def recorded(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return which pixels a delta was trained on, and how it was evaluated.

    Args:
        metadata: Metadata of the delta. Entries that are missing, or in another form
            than this version writes, are left out.
    """
    found: dict[str, Any] = {}
    for name in _JSON:
        try:
            value = json.loads(metadata.get(name, 'null'))
        except (ValueError, RecursionError):
            continue
        if value is not None:
            found[name] = value
    if metadata.get('pooling') in POOLINGS:
        found['pooling'] = metadata['pooling']
    return found


def warn_of_differences(
    recorded: Mapping[str, Any], own: Mapping[str, Any], delta: str | None
) -> None:
    """Warn if a task sees or evaluates images differently from the delta's run.

    Args:
        recorded: What `recorded` returned.
        own: The same for the task, as far as it is known.
        delta: The file, for the message.
    """
    other = [
        f'*{name}* was {printable(theirs, 100)} there and is'
        f' {printable(own[name], 100)} here'
        for name, theirs in recorded.items()
        if own.get(name) is not None and _key(name, theirs) != _key(name, own[name])
    ]
    if other:
        warnings.warn(
            f'the run that made {delta} saw or evaluated images differently:'
            f' {"; ".join(other)}. Use the same settings if the images are alike',
            stacklevel=2,
        )


def _key(name: str, value: Any) -> Any:
    """Return a form of a value that is equal for values with the same meaning."""
    if name == 'value_range' and _is_list(value) and all(map(_is_list, value)):
        # One end for all channels, or the same one for each.
        return [end[:1] if end == end[:1] * len(end) else end for end in value]
    if name == 'bands' and _is_list(value):
        return [spell_band(str(band)) for band in value]
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
