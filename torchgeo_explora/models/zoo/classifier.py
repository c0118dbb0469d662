"""Backbones of this package with the interface of a timm model."""

import torch
from torch import Tensor, nn

from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.group_channel import GroupChannelViT
from torchgeo_explora.models.backbones.temporal import TemporalViT


class Classifier(Backbone):
    """A backbone with a head, whose `forward` returns logits as timm's models do.

    A subclass has a backbone as its second base class. Call `reset_classifier` before
    use.
    """

    head: nn.Module

    def reset_classifier(self, num_classes: int, global_pool: str = 'avg') -> None:
        """Replace the head by a new one.

        Args:
            num_classes: Number of outputs; 0 for pooled features.
            global_pool: Input of the head: 'avg' for the mean patch token, 'token' for
                the class token.

        Raises:
            ValueError: If *global_pool* is something else.
        """
        if global_pool not in ('avg', 'token'):
            raise ValueError(f"*global_pool* is {global_pool!r}: use 'avg' or 'token'")
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.embed_dim
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.embed_dim, num_classes)
        # TorchGeo reads channels from the first child, and classes from the last.
        for name, child in [*self.named_children()]:
            if name != 'patch_embed':
                delattr(self, name)
                self.add_module(name, child)

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward_features(self, image: Tensor, **metadata: Tensor) -> Tensor:
        """Return class and patch tokens after the final norm, (B, 1 + N, D)."""
        cls, patch = super().forward(image, **metadata)
        return torch.cat([cls[:, None], patch], dim=1)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, classes) of tokens (B, 1 + N, D), or the head's input."""
        average = self.global_pool == 'avg'
        pooled = tokens[:, 1:].mean(1) if average else tokens[:, 0]
        return pooled if pre_logits else self.head(pooled)

    def forward(  # type: ignore[override]
        self, image: Tensor, **metadata: Tensor
    ) -> Tensor:
        """Return logits (B, classes), or pooled features (B, D) without a head."""
        return self.forward_head(self.forward_features(image, **metadata))


class GroupChannelClassifier(Classifier, GroupChannelViT):
    """A `GroupChannelViT` with a head."""


class TemporalClassifier(Classifier, TemporalViT):
    """A `TemporalViT` with a head; its `forward` needs timestamps."""
