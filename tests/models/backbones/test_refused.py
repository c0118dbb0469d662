"""What timm has and the backbones here refuse: the reason, and what to use."""

import pytest

from torchgeo_explora.tasks.run.backbone import build_backbone


@pytest.mark.parametrize(
    ('model', 'reason', 'nearest'),
    [
        ('swin_tiny_patch4_window7_224', 'within windows', 'vit_base_patch16_dinov3'),
        ('swinv2_cr_tiny_224', 'within windows', 'vit_base_patch16_dinov3'),
        ('beit_base_patch16_224', 'each pair of places', 'vit_base_patch16_224.mae'),
        ('samvit_base_patch16', 'no class token', 'vit_base_patch16_224.mae'),
        ('vit_tiny_r_s16_p8_224', 'convolutional', 'vit_tiny_patch16_224'),
        (
            'deit_tiny_distilled_patch16_224',
            'for distillation',
            'deit_tiny_patch16_224',
        ),
        ('eva02_tiny_patch14_224', 'positions of another kind', '_patch16_dinov3'),
        ('vit_small_patch16_rope_mixed_224', 'another kind', 'vit_small_patch16_din'),
        ('resnet18', 'is a ResNet', 'vit_base_patch14_dinov2'),
        ('xcit_nano_12_p16_224', 'is a Xcit', 'vit_base_patch14_dinov2'),
    ],
)
def test_refusal_names_the_reason_and_the_nearest_model(model, reason, nearest):
    with pytest.raises((TypeError, ValueError)) as error:
        build_backbone(model)
    message = str(error.value)
    assert reason in message
    assert f'the nearest supported model is {nearest}' in message or (
        nearest.startswith('_') and nearest in message.partition('nearest')[2]
    )
    assert '\n' not in message


def test_a_wrong_argument_is_not_blamed_on_the_model():
    with pytest.raises(TypeError, match='emb_dim') as error:
        build_backbone('vit_tiny_patch16_224', model_args={'emb_dim': 24})
    assert 'nearest' not in str(error.value)
