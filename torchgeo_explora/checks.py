"""Checks of numbers that a user gives; each error says what to give instead."""

import math
from collections.abc import Sequence


def require_share(name: str, value: float, below_one: bool = False) -> None:
    """Raise ValueError unless a value is a share: from 0 to 1.

    Args:
        name: Name of the argument.
        value: The value given.
        below_one: Whether 1 itself is too large.
    """
    if not 0 <= value <= 1 or (below_one and value == 1):
        end = 'below 1' if below_one else '1'
        hint = ''
        if value > 1:
            hint = f'; for {value:g} of n steps give {value:g} / n'
        raise ValueError(f'*{name}* is a share, from 0 to {end}, not {value:g}{hint}')


def require_positive(name: str, value: float, or_zero: bool = False) -> None:
    """Raise ValueError unless a value is finite and above 0.

    Args:
        name: Name of the argument.
        value: The value given.
        or_zero: Whether 0 is allowed.
    """
    if not math.isfinite(value) or value < 0 or (value == 0 and not or_zero):
        kind = '0 or more' if or_zero else 'above 0'
        raise ValueError(f'*{name}* is {value:g}: give a number {kind}')


def require_range(
    name: str, value: Sequence[float], low: float = 0.0, high: float = 1.0
) -> None:
    """Raise ValueError unless a pair ascends within bounds.

    Args:
        name: Name of the argument.
        value: (first, second), first <= second.
        low: Smallest value allowed.
        high: Largest value allowed.
    """
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(
            f'*{name}* is {list(value)}: give two numbers from {low:g} to {high:g}, the'
            ' smaller one first'
        )
