"""Backbones, heads, and the way to and from published weights."""

from torchgeo_explora.models.backbone import Attention, Backbone, Features, Tokens
from torchgeo_explora.models.group_channel import GroupChannelViT
from torchgeo_explora.models.heads import DINOHead
from torchgeo_explora.models.temporal import TemporalViT
from torchgeo_explora.models.vit import ViT

__all__ = [
    'Attention',
    'Backbone',
    'DINOHead',
    'Features',
    'GroupChannelViT',
    'TemporalViT',
    'Tokens',
    'ViT',
]
