"""Arguments that every task shares: where it starts, and how it sees images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from os import PathLike
from typing import Any

from torchvision.models._api import WeightsEnum

from torchgeo_explora.paths import expanded
from torchgeo_explora.tasks.run.adaptation import plain


@dataclass(kw_only=True)
class TaskOptions:
    """The base that a task starts from, and how it sees images.

    Args:
        weights: A path to a checkpoint, a weights enum or its name, True for timm's
            weights of a model by name, or None for random weights. A given backbone
            loads them with its `start_from`; None leaves it unchanged.
        in_channels: Number of channels of the images, for a model by name; if None,
            taken from a weights enum, else 3.
        image_size: Size of the views in pixels; if None, 224 for a model by name, or
            the size of a given backbone.
        value_range: (low, high) of the sensor values, scalars or one per channel; if
            None, taken from a weights enum, else from the data module.
        mean: Mean for normalisation, of values in [0, 1]; if None, taken from the delta
            or the base, and averaged over its channels if their number differs.
        std: Standard deviation for normalisation; if None, chosen as for *mean*.
        model_args: Further arguments of a model by name (`embed_dim`, `depth`, ...).
        seed: Seed of augmentation, masks, drop path and the order of the images.
    """

    # bool first: otherwise `true` on a command line would be read as a name.
    weights: bool | WeightsEnum | str | None = True
    in_channels: int | None = None
    image_size: int | None = None
    value_range: tuple[Any, Any] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    model_args: dict[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Replace `~` and environment variables in paths."""
        for name in ('weights', 'delta'):
            value = getattr(self, name, None)
            if isinstance(value, str | PathLike) and not isinstance(value, Enum):
                setattr(self, name, expanded(value))

    def plain(self) -> dict[str, Any]:
        """Return the options as values that a checkpoint may hold."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}
