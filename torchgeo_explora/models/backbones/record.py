"""What is known about a module's weights, apart from their values."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn


class Adapted(NamedTuple):
    """How `adapt` changed a module; its twin has the same."""

    adaptation: Any
    """The `Adaptation`."""
    delta: tuple[str, ...]
    """State dict keys of the delta: what is trained and what the adapter added."""
    base_parameters: int
    """Number of parameters of the module without the adapter."""
    frozen: tuple[str, ...]
    """Parameters of the plain module that were frozen before, too."""


@dataclass
class Record:
    """Where a module's weights come from, and what was done to them.

    Every `Backbone` and decoder has one as `record`; `adapt` gives one to any other
    module.
    """

    fingerprint: str | None = None
    """SHA-256 of the last complete base that was loaded; None if there was none."""
    lineage: str | None = None
    """'base+delta': the fingerprints of a base and of each delta folded into it."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """What the weights held in addition to the backbone: mask token, decoder, heads. On
    the CPU; code that needs it may take it and leave {}."""
    untrained: tuple[str, ...] = ()
    """Modules and parameters outside the blocks that no weights were loaded for, as
    `Adaptation(modules=...)` takes them: they have to be trained."""
    rounded: bool = False
    """Whether `store_frozen` has rounded the base."""
    adapted: Adapted | None = None
    """What `adapt` did; None for a plain module."""

    def take_extras(self) -> dict[str, Tensor]:
        """Return and clear `extras`, which copies of the module would copy too."""
        extras, self.extras = self.extras, {}
        return extras


def record_of(module: nn.Module) -> Record | None:
    """Return the record of *module* itself; None if it has none."""
    record = vars(module).get('record')
    return record if isinstance(record, Record) else None
