"""A PEFT configuration from the values in a file that is not trusted.

Only fields of the method's own configuration are accepted, with plain values of their
type. Fields that import a module or read another file are refused, and so are regular
expressions that could take very long to match.
"""

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from torchgeo_explora.terminal import printable

# The standard library's own parser of expressions, which has no public name.
parser: Any = importlib.import_module('re._parser')
kinds: Any = importlib.import_module('re._constants')

# Fields that other programs use to import something or to read another file.
_FOREIGN = (
    *('adapters', 'auto_mapping', 'megatron_config', 'megatron_core', 'shadow_model'),
    *('prompt_tuning_init_state_dict_path', 'tokenizer_kwargs'),
    'tokenizer_name_or_path',
)
_EXPRESSIONS = (
    *('target_modules', 'exclude_modules', 'layers_pattern', 'modules_to_save'),
)
_RANKS = ('init_r', 'r', 'target_r')
_HIGHEST_RANK = 4096
_LARGEST = 2**20
_LONGEST = 2000
_MOST_ENTRIES = 10_000
#: An expression with more ways to match a name is refused.
_MOST_WAYS = 1_000_000
# Characters that one repeat can match: more than any name of a layer has.
_NAME = 64


def adapter_fields(method: Any) -> set[str] | None:
    """Return the options of a PEFT method; None if PEFT does not know the method."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING.get(method) if _is_text(method) else None
    if config is None:
        return None
    return {field.name for field in dataclasses.fields(config) if field.init}


def adapter_from_file(values: Any) -> PeftConfig:
    """Return the PEFT configuration that `Adaptation.to_dict` described.

    Args:
        values: Fields by name, with the method as `peft_type`.

    Raises:
        ValueError: If the installed PEFT does not know the method or a field, or a
            value has the wrong type or is out of range.
    """
    if not isinstance(values, Mapping) or not all(map(_is_text, values)):
        raise ValueError(
            f'the adapter is {printable(values, 60)}, expected fields with values'
        )
    method: Any = values.get('peft_type')
    known = adapter_fields(method)
    if known is None:
        raise ValueError(
            f'the installed PEFT does not know the method {printable(method, 60)}:'
            ' upgrade peft'
        )
    config = PEFT_TYPE_TO_CONFIG_MAPPING[method]
    defaults = {field.name: _default(field) for field in dataclasses.fields(config)}
    given = {}
    for name, value in values.items():
        if name in ('peft_type', 'peft_version', 'runtime_config'):
            continue
        if name not in known:
            # A newer PEFT also writes options that are off: these change nothing.
            if value:
                raise ValueError(
                    f'adapter {method} has no option {printable(name, 60)} in the'
                    ' installed PEFT: upgrade peft'
                )
            continue
        if name in _FOREIGN and value != defaults[name]:
            raise ValueError(
                f'adapter option {name} is {printable(value, 60)}: a file may not set'
                ' options that import a module or read another file'
            )
        if expected := _misfit(name, value, defaults[name]):
            raise ValueError(
                f'adapter option {name} is {printable(value, 60)}, expected {expected}'
            )
        given[name] = value
    if 'target_modules' not in known or {'adapters', 'shadow_model'} & known:
        raise ValueError(
            f'adapter {method} does not change single layers of a backbone: a delta'
            ' cannot hold it'
        )
    for name in _EXPRESSIONS:
        _check_expressions(name, given.get(name))
    for name, value in given.items():
        if name.endswith('_pattern') and isinstance(value, Mapping):
            _check_expressions(name, [*value])
    try:
        return config(**given)
    except Exception as error:
        raise ValueError(
            f'adapter {method} cannot be built: {printable(error)}'
        ) from error


def _default(field: 'dataclasses.Field[Any]') -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _misfit(name: str, value: Any, default: Any) -> str | None:
    """Return what is expected of a field; None if its value is good."""
    if value is None:
        good = default is None or not isinstance(default, bool | int | float)
        return None if good else f'a value such as {default!r}'
    if name in _RANKS:
        least = 0 if default == 0 else 1  # OFT's 0 means that the size is given
        good = _is_whole(value) and least <= value <= _HIGHEST_RANK
        return None if good else f'a whole number from {least} to {_HIGHEST_RANK}'
    if name.startswith('init_') and isinstance(default, bool | str):
        # Either the name of an initialisation, or whether to initialise at all.
        good = isinstance(value, bool) or _is_text(value)
        return None if good else 'true, false or a name'
    if isinstance(default, bool):
        return None if isinstance(value, bool) else 'true or false'
    if isinstance(default, int | float):
        good = _is_number(value, 2**63 if 'seed' in name else _LARGEST)
        return None if good else f'a number up to {_LARGEST}'
    if isinstance(default, str):
        return None if _is_text(value) else 'a string'
    if name == 'rank_pattern':
        good = isinstance(value, Mapping) and all(
            _is_text(key) and _is_whole(rank) and 1 <= rank <= _HIGHEST_RANK
            for key, rank in value.items()
        )
        # AdaLoRA's pattern has a list of flags for each layer.
        good = good or (default is None and _is_plain(value))
        return None if good else f'names with ranks from 1 to {_HIGHEST_RANK}'
    return None if _is_plain(value) else 'plain values'


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Mapping):
        inner: Sequence[Any] = [*value.values()]
        if not all(map(_is_text, value)):
            return False
    elif isinstance(value, list | tuple | set):
        inner = [*value]
    else:
        return (
            value is None
            or isinstance(value, bool)
            or _is_text(value)
            or _is_number(value, _LARGEST)
        )
    small = len(inner) <= _MOST_ENTRIES and depth < 2
    return small and all(_is_plain(each, depth + 1) for each in inner)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any, most: float) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= most
    return _is_whole(value) and abs(value) <= most


def _check_expressions(name: str, value: Any) -> None:
    """Raise unless names and expressions are short and quick to match."""
    if value is None:
        return
    several = isinstance(value, list | tuple | set)
    expressions = [*value] if several else [value]
    if not all(map(_is_text, expressions)):
        raise ValueError(
            f'adapter option {name} is {printable(value, 60)}, expected names or one'
            f' expression of at most {_LONGEST} characters'
        )
    for expression in expressions:
        try:
            ways = ways_to_match(expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f'adapter option {name} has {printable(expression, 60)}, which is not'
                f' a regular expression ({error})'
            ) from error
        if ways > _MOST_WAYS:
            raise ValueError(
                f'adapter option {name} has {printable(expression, 60)}, which could'
                ' take very long to match: do not repeat anything that contains'
                ' repeats or alternatives, and use at most 3 repeats'
            )


def ways_to_match(expression: str) -> float:
    """Return a bound on the ways in which a regular expression can match a name.

    A failing match tries all of them. Repeats inside repeats give infinity, since they
    multiply without limit.

    Raises:
        re.error: If *expression* is not a regular expression.
    """
    return _ways(parser.parse(expression))


def _ways(parts: Any) -> float:
    total = 1.0
    for kind, value in parts:
        if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            least, most, inner = value
            inside = _ways(inner)
            if inside > 1 and int(most) > 1:
                return math.inf
            lengths = min(int(most), _NAME) - min(int(least), _NAME) + 1
            total *= lengths * inside
        elif kind is kinds.BRANCH:
            total *= sum(_ways(branch) for branch in value[1])
        elif kind is kinds.SUBPATTERN:
            total *= _ways(value[-1])
        elif kind in (kinds.ASSERT, kinds.ASSERT_NOT):
            total *= _ways(value[1])
        elif kind is kinds.ATOMIC_GROUP:
            total *= _ways(value)
        elif kind is kinds.GROUPREF_EXISTS:
            total *= sum(_ways(branch) for branch in value[1:] if branch)
    return total
