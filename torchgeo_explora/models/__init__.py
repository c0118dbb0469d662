"""Backbones, heads, and conversion from and to published weights.

Importing this package registers ExPLoRA's architectures with timm.
"""

from torchgeo_explora.models.backbones.attention import Attention
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.dofa import DOFAViT
from torchgeo_explora.models.backbones.group_channel import GroupChannelViT
from torchgeo_explora.models.backbones.rotary import RotaryViT
from torchgeo_explora.models.backbones.temporal import TemporalViT
from torchgeo_explora.models.backbones.tokens import Features, Tokens
from torchgeo_explora.models.backbones.vit import ViT
from torchgeo_explora.models.heads.dino import DINOHead
from torchgeo_explora.models.zoo import architectures as _architectures  # noqa: F401

__all__ = [
    'Attention',
    'Backbone',
    'DINOHead',
    'DOFAViT',
    'Features',
    'GroupChannelViT',
    'RotaryViT',
    'TemporalViT',
    'Tokens',
    'ViT',
]
