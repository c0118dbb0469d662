"""The frozen base under a delta that trains."""

import pytest
import torch

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    delta_state_dict,
    frozen_base,
    lora,
    store_frozen,
)
from torchgeo_explora.models import RotaryViT

SIZES = {'embed_dim': 24, 'depth': 3, 'num_heads': 2}


def _rotary():
    """A rotary ViT whose coordinates are rescaled in training."""
    return RotaryViT(
        'vit_small_patch16_dinov3',
        image_size=32,
        patch_size=8,
        rope_rescale_coords=2,
        **SIZES,
    )


def _bytes(*modules):
    """Count the bytes of the tensors of modules, each tensor once."""
    tensors = {
        id(t): t.numel() * t.element_size()
        for module in modules
        for t in module.state_dict(keep_vars=True).values()
    }
    return sum(tensors.values())


@pytest.mark.parametrize('rotary', [False, True])
def test_anchor_is_the_base_to_the_bit_after_50_steps(tiny_backbone, rotary):
    backbone = _rotary() if rotary else tiny_backbone
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = backbone.eval()(image)
    adapt(backbone, Adaptation(adapter=lora(4), modules=('patch_embed',)))
    anchor = frozen_base(backbone)
    trained = [p for p in backbone.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        (backbone(image).cls.square().mean() + backbone(image).patch.mean()).backward()
        optimizer.step()
    with torch.no_grad():
        moved, after = backbone.eval()(image), anchor(image)
    assert (moved.cls - before.cls).abs().max() > 0.1
    for found, expected in zip(after, before, strict=True):
        assert (found - expected).abs().max() == 0


def test_anchor_copies_what_trains_in_full_and_nothing_else(tiny_backbone):
    backbone = adapt(tiny_backbone, Adaptation(adapter=lora(4)))
    anchor = frozen_base(backbone)
    own = {id(p): p for p in anchor.parameters()}
    shared = {id(p) for p in backbone.parameters() if not p.requires_grad}
    copied = {
        name
        for name, p in backbone.named_parameters()
        if p.requires_grad and 'lora_' not in name
    }
    extra = sum(p.numel() for key, p in own.items() if key not in shared)
    sizes = dict(backbone.named_parameters())
    assert shared <= own.keys()
    assert extra == sum(sizes[name].numel() for name in copied)
    assert not any('lora_' in name for name, _ in anchor.named_parameters())


def test_memory_of_an_anchor_is_that_of_the_unfrozen_block():
    """On paper for a ViT-L: bytes of tensors with and without it."""
    with torch.device('meta'):
        from torchgeo_explora.models import ViT

        backbone = ViT('vit_large_patch16_224')
        whole = _bytes(backbone)
        adapt(backbone, Adaptation())
        alone = _bytes(backbone)
        added = _bytes(backbone, frozen_base(backbone)) - alone
    assert 0.04 < added / whole < 0.045
    assert added < 52e6  # of 1.2 GB


def test_anchor_is_no_part_of_a_checkpoint(tiny_backbone):
    backbone = adapt(tiny_backbone, Adaptation(adapter=lora(4)))
    host = torch.nn.ModuleDict({'student': backbone, 'anchor': frozen_base(backbone)})
    state = delta_state_dict(host)
    assert state
    assert all(name.startswith('student.') for name in state)


def test_anchor_of_a_rounded_base_is_rounded_too(tiny_backbone):
    backbone = adapt(tiny_backbone, Adaptation(adapter=lora(4)))
    store_frozen(backbone, torch.bfloat16)
    anchor, image = frozen_base(backbone), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        found, expected = anchor(image), backbone.eval()(image)
    assert torch.equal(found.cls, expected.cls)


def test_anchor_needs_an_adapted_backbone_and_a_base(tiny_backbone):
    with pytest.raises(ValueError, match='not adapted'):
        frozen_base(tiny_backbone)
    adapt(tiny_backbone, Adaptation(adapter=lora(4), modules=('patch_embed',)))
    tiny_backbone.record.untrained = ('patch_embed',)
    with pytest.raises(ValueError, match=r'random values for patch_embed.*gram_weight'):
        frozen_base(tiny_backbone)
