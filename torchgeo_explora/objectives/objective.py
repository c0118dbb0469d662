"""The interface of a self-supervised objective to a training loop."""

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
        student: The backbone that is trained.
        augment: Module from (B, C, H, W) in [0, 1] to views, if there is one.
        diagnostics: Detached scalars of the last forward, for logging only.
    """

    student: Backbone
    augment: nn.Module | None
    diagnostics: dict[str, Tensor]
    #: How to pool a backbone that this method trained; None for the backbone's own.
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
        """Update what has no gradient, once per optimizer step.

        Args:
            progress: The value that the forward of this step got.
        """


def batch_metadata(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return all tensors of a batch but the image: a backbone uses those it knows.

    Args:
        batch: A batch of a data module.
    """
    return {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and name != 'image'
    }
