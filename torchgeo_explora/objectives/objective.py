"""What a self-supervised objective offers to a training loop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.tokens import Pooling


class Objective(nn.Module, ABC):
    """One self-supervised method around one student backbone.

    Time is *progress*: optimizer step i of n is i / n, in [0, 1]. The micro-batches
    that one optimizer step accumulates share its value.

    Attributes:
        student: The backbone that trains.
        augment: Module from (B, C, H, W) in [0, 1] to views, if there is one.
        diagnostics: Detached scalars of the last forward, for logging only.
    """

    student: Backbone
    augment: nn.Module | None
    diagnostics: dict[str, Tensor]
    #: What stands for an image where this method trained; None for the backbone's own.
    pooling: ClassVar[Pooling | None] = None

    @property
    @abstractmethod
    def pretrained(self) -> Backbone:
        """The backbone to keep when training ends."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any], progress: float) -> dict[str, Tensor]:
        """Return the weighted terms of the loss, by name; their sum is the loss.

        Args:
            batch: 'image' (B, C, H, W) in [0, 1], and the backbone's metadata.
            progress: Optimizer steps done over planned, in [0, 1].
        """

    @abstractmethod
    def before_step(self, progress: float) -> dict[str, Tensor]:
        """Edit the gradients before an optimizer step; return their norms by module."""

    @abstractmethod
    def after_step(self, progress: float) -> None:
        """Move what has no gradient, once per optimizer step.

        Args:
            progress: The value that the forward of this step got.
        """


def batch_metadata(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a batch beside its image: a backbone takes what it knows.

    Args:
        batch: Of a data module.
    """
    return {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and name != 'image'
    }
