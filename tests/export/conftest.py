"""What the tests of export share: small backbones with a delta that matters."""

import pytest
import timm
import torch
from timm.models import register_model

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.models import GroupChannelViT, RotaryViT, ViT

# Four blocks, as many as a DPT decoder taps.
SIZES = {'embed_dim': 24, 'depth': 4, 'num_heads': 2}

ROTARY = {'image_size': 32, 'embed_dim': 48, 'depth': 2, 'num_heads': 2}


@register_model
def explora_tiny_export(pretrained=False, **options):
    """What a stock task builds: patch 16, as its segmentation needs."""
    options = {'img_size': 32, 'init_values': 1e-5, **SIZES, **options}
    return timm.create_model('vit_tiny_patch16_224', **options)


BACKBONES = {
    'dinov2': lambda: ViT('vit_small_patch14_dinov2', image_size=28, **SIZES),
    'gated': lambda: ViT(
        'vit_giant_patch14_dinov2', image_size=28, **SIZES, mlp_ratio=64 * 2 / 24
    ),
    'registers': lambda: ViT('vit_small_patch14_reg4_dinov2', image_size=28, **SIZES),
    'mae': lambda: ViT('vit_base_patch16_224.mae', image_size=32, **SIZES),
    'rotary': lambda: RotaryViT('vit_small_patch16_dinov3_qkvb', **ROTARY),
    'rotary gated': lambda: RotaryViT('vit_small_plus_patch16_dinov3', **ROTARY),
    'stock': lambda: ViT('explora_tiny_export'),
    'groups': lambda: GroupChannelViT(
        image_size=16, patch_size=8, channel_embed_dim=8, **SIZES
    ),
}


@pytest.fixture(scope='module')
def backbone():
    """A plain ViT of 2 blocks that sees images of 32 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}
        return ViT('vit_tiny_patch16_224', image_size=32, **sizes).eval()


@pytest.fixture
def make():
    """Return a function that builds a plain backbone with random values by its name."""

    def build(name):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = BACKBONES[name]().eval()
            for parameter in backbone.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        return backbone

    return build


@pytest.fixture
def trained(make):
    """Return a function that gives a backbone by its name a delta that changes it."""

    def train(name, **options):
        backbone = make(name)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            adapt(backbone, Adaptation(**{'adapter': lora(4), **options}))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise, alpha=0.1)
        return backbone

    return train


@pytest.fixture
def picture():
    """Return a function that draws images that a backbone takes."""

    def draw(backbone, size=None):
        generator = torch.Generator().manual_seed(2)
        size = size or backbone.image_size
        return torch.randn(2, backbone.in_channels, *size, generator=generator)

    return draw
