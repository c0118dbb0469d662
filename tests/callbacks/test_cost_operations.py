"""The counted formula against torch's own counter of operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.augment import MultiCropOptions, SingleCrop
from torchgeo_explora.callbacks.cost import image_operations, vit_operations
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT
from torchgeo_explora.objectives import MAE, DINOv2, Objective

SMALL = {'embed_dim': 24, 'depth': 3, 'num_heads': 2, 'patch_size': 8}
STATISTICS = ((0.5,) * 3, (0.25,) * 3)
DECODER = {'decoder_dim': 24, 'decoder_depth': 2, 'decoder_heads': 2}


def counter():
    """Return torch's counter, which does not know the attention of a CPU."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def products(query, key, *_, **__):
        (images, heads, rows, width), columns = query, key[-2]
        return 4 * images * heads * rows * columns * width

    def twice(_, *shapes, **__):
        return 2 * products(*shapes)

    mapping = {attention: products, backward: twice}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def small_vit(**arguments):
    backbone = ViT('vit_tiny_patch16_224', image_size=32, **SMALL, **arguments)
    return adapt(backbone, Adaptation(adapter=lora(4)))


def counted(objective, image, **metadata):
    with counter() as found:
        terms = objective({'image': image, **metadata}, 0.5)
        torch.stack(list(terms.values())).sum().backward()
    return found.get_total_flops() / len(image)


@pytest.mark.parametrize('wanted', [False, True])
def test_formula_of_a_vit_is_what_torch_counts(wanted):
    backbone = small_vit()
    image = torch.rand(2, 3, 32, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, :5] = True
    content, position, _ = backbone.embed(image)
    with counter() as found:
        features = backbone.encode(content, position, mask if wanted else None)
        forward = found.get_total_flops()
        (features.cls.sum() + features.patch.sum()).backward()
    expected = vit_operations(backbone.blocks, 24, 17, 6 if wanted else None)
    assert forward / 2 == expected[0]
    assert (found.get_total_flops() - forward) / 2 == expected[1]


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'ibot_head': {'prototypes': 16, 'hidden_dim': 8, 'bottleneck_dim': 4}},
        {'gram_weight': (1.0, 1.0), 'gram_scale': 1},
    ],
)
def test_formula_of_dinov2_is_near_what_torch_counts(options):
    """Near: the masked patches are drawn, and short rows of queries filled up."""
    torch.manual_seed(0)
    views = MultiCropOptions(local_size=16, local_views=3)
    sizes = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8}
    student = small_vit()
    augment = views.build(
        *(32, 8, *STATISTICS),
        anchor_size=32 if 'gram_weight' in options else None,
    )
    objective = DINOv2(student, augment, **sizes, **options)
    image = torch.rand(16, 3, 40, 40)
    found = image_operations(objective, augment(image))
    assert found == pytest.approx(counted(objective, image), rel=0.04)


@pytest.mark.parametrize('kind', ['plain', 'groups', 'series'])
def test_formula_of_mae_is_near_what_torch_counts(kind):
    sizes = {'image_size': 32, **SMALL}
    image, metadata, augment = torch.rand(2, 3, 32, 32), {}, None
    if kind == 'groups':
        bands = ('B02', 'B03', 'B04', 'B05', 'B08')
        groups = (bands[:3], bands[3:])
        student = GroupChannelViT(bands, groups, channel_embed_dim=8, **sizes)
        image = torch.rand(2, 5, 32, 32)
    elif kind == 'series':
        student = TemporalViT(time_embed_dim=12, **sizes)
        image = torch.rand(2, 2, 3, 32, 32)
        metadata = {'timestamps': torch.tensor([[[13, 6, 7], [14, 0, 0]]] * 2)}
    else:
        student = ViT('vit_tiny_patch16_224', **sizes)
        augment = SingleCrop(32, (0.2, 1.0), *STATISTICS)
    adapt(student, Adaptation(adapter=lora(4)))
    widths = {'decoder_channel_dim': 8, 'decoder_time_dim': 12}
    objective = MAE(student, augment=augment, **DECODER, **widths)
    found = image_operations(objective, image)
    assert found == pytest.approx(counted(objective, image, **metadata), rel=0.03)


def test_another_method_is_not_counted():
    class Own(Objective):
        pretrained = property(lambda self: self.student)

        def forward(self, batch, progress):
            return {}

        def before_step(self, progress):
            return {}

        def after_step(self, progress):
            pass

    assert image_operations(Own(), torch.rand(1, 3, 8, 8)) is None
