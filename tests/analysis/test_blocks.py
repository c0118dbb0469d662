"""Every backbone can be analysed, and the numbers are those of its own features."""

import pytest
import torch

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.analysis import analyze_blocks, block_changes, suggest
from torchgeo_explora.analysis.blocks import block_outputs
from torchgeo_explora.models import GroupChannelViT, RotaryViT, TemporalViT, ViT

TINY = {'embed_dim': 16, 'depth': 3, 'num_heads': 2}


def plain(**more):
    return ViT('vit_tiny_patch16_224', image_size=(32, 64), **TINY, **more)


def batches(backbone, images=6, labels=True):
    generator = torch.Generator().manual_seed(0)
    shape = (images, backbone.in_channels, *backbone.image_size)
    batch = {'image': torch.randn(shape, generator=generator)}
    if isinstance(backbone, TemporalViT):
        batch['image'] = batch['image'][:, None].expand(-1, 3, -1, -1, -1)
        batch['timestamps'] = torch.ones(images, 3, 3)
    if labels:
        batch['label'] = torch.arange(images) % 2 * 7  # numbers with a gap
    return [batch]


BACKBONES = {
    'non-square': plain,
    'registers': lambda: plain(reg_tokens=4, no_embed_class=True),
    'rotary': lambda: RotaryViT(
        'vit_small_patch16_dinov3', image_size=(32, 48), **TINY
    ),
    'groups': lambda: GroupChannelViT(
        bands=['B02', 'B03', 'B04', 'B08'],
        groups=[['B02', 'B03'], ['B04', 'B08']],
        image_size=16,
        channel_embed_dim=4,
        **TINY,
    ),
    'times': lambda: TemporalViT(image_size=32, time_embed_dim=12, **TINY),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_every_backbone_is_analysed(name):
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    reports = analyze_blocks(backbone, batches(backbone))
    assert [report.block for report in reports] == [0, 1, 2]
    for report in reports:
        row = report.row()
        assert all(torch.isfinite(torch.tensor(float(v))) for v in row.values())
        assert 0 <= report.position_accuracy <= 1
        assert 0 <= report.class_accuracy <= 1
        assert 0 < report.attention_entropy <= 1 + 1e-6
        assert report.attention_distance > 0


@pytest.mark.parametrize('name', BACKBONES)
def test_the_last_block_gives_the_backbones_own_features(name):
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval()
    (batch,) = batches(backbone, labels=False)
    *_, (grid, tokens, _) = block_outputs(backbone, **batch)
    features = backbone(**batch)
    assert grid == backbone.embed(**batch).grid
    torch.testing.assert_close(backbone.norm(tokens), features.patch)


def test_the_same_tokens_are_kept_of_two_models():
    """CKA compares a token before with the same token after."""
    torch.manual_seed(0)
    backbone = plain()
    first, second = (analyze_blocks(backbone, batches(backbone)) for _ in range(2))
    assert all(
        torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True)
    )


def test_a_mode_is_left_as_it_was_and_labels_are_optional():
    backbone = plain().train()
    reports = analyze_blocks(backbone, batches(backbone, labels=False))
    assert backbone.training
    assert reports[0].class_accuracy is None


def test_one_image_is_not_enough():
    backbone = plain()
    with pytest.raises(ValueError, match='at least 2 images'):
        analyze_blocks(backbone, batches(backbone, images=1))


def test_more_components_than_samples_are_as_many_as_there_are():
    """An image of two patches has one eigenvalue, however many are asked for."""
    backbone = ViT('vit_tiny_patch16_224', image_size=(16, 32), **TINY)
    few, many = (
        analyze_blocks(backbone, batches(backbone), eigenvalues=count)
        for count in (1, 1000)
    )
    for one, all_ in zip(few, many, strict=True):
        assert one.eigenvalue_mean == all_.eigenvalue_mean > 0


def test_images_have_one_size():
    backbone = plain()
    other = [{'image': torch.zeros(2, 3, 32, 32)}, *batches(backbone, labels=False)]
    with pytest.raises(ValueError, match='resize them to one size'):
        analyze_blocks(backbone, other)


def test_changes_are_the_norm_of_loras_product():
    torch.manual_seed(0)
    base = plain()
    backbone = plain()
    backbone.load_state_dict(base.state_dict())
    adapt(backbone, Adaptation(unfreeze=(-1,), adapter=lora(rank=2, alpha=4)))
    for name, parameter in backbone.named_parameters():
        if 'lora_B' in name and 'blocks.0.attn.q' in name:
            torch.nn.init.normal_(parameter)
    changes = block_changes(base, backbone)
    layer = backbone.blocks[0].attn.q
    product = 2 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    size = (base.blocks[0].attn.q.weight.norm() ** 2).item()
    size += (base.blocks[0].attn.q.bias.norm() ** 2).item()
    expected = product.norm().item() / size**0.5
    assert changes[0]['attn.q'] == pytest.approx(expected, rel=1e-5)
    assert changes[0]['attn.k'] == changes[1]['all'] == changes[2]['all'] == 0
    assert changes[0]['all'] > 0


def test_changes_are_between_models_of_one_architecture():
    with pytest.raises(ValueError, match='different names or shapes'):
        block_changes(plain(), plain(reg_tokens=1))


def test_suggestion_takes_the_lowest_of_the_deep_half_within_the_budget():
    torch.manual_seed(0)
    backbone = ViT(
        'vit_tiny_patch16_224', image_size=32, embed_dim=16, depth=6, num_heads=2
    )
    reports = analyze_blocks(backbone, batches(backbone))
    for report, mean in zip(reports, [0.1, 0.1, 0.1, 5, 1, 3], strict=True):
        report.eigenvalue_mean = mean
    found = suggest(backbone, reports, budget=0.4)
    assert (found.unfreeze, found.order) == (4, (4, 5, 3))
    adapted = adapt(
        backbone, Adaptation(unfreeze=(4,), adapter=lora(rank=found.rank, alpha=1))
    )
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert found.parameters == trained
    assert found.share <= 0.4
    with pytest.raises(ValueError, match=r'above \*budget\* 1.0%'):
        suggest(plain(), reports[:3], budget=0.01)


@pytest.mark.parametrize('budget', [-0.1, 0, 7])
def test_a_budget_is_a_share(budget):
    with pytest.raises(ValueError, match=r'give a share, such as 0\.07'):
        suggest(plain(), [], budget)


@pytest.mark.parametrize('label', [torch.ones(6, 3).long(), torch.rand(6)])
def test_labels_that_name_no_class_are_not_probed(label):
    """Several labels of an image, or a measured value."""
    backbone = plain()
    (batch,) = batches(backbone)
    reports = analyze_blocks(backbone, [{**batch, 'label': label}])
    assert reports[0].class_accuracy is None
