import pytest
import timm
import torch
from torch.testing import assert_close
from torchgeo.models import api

from torchgeo_explora import ExploraWeights
from torchgeo_explora.models import ViT
from torchgeo_explora.models.zoo import architectures as zoo
from torchgeo_explora.models.zoo.weights import register_with_torchgeo, shapes

DINOV2 = 'explora_vit_base_patch14_224'
GROUP = 'explora_vit_base_group_patch8_96'
TEMPORAL = 'explora_vit_base_temporal_patch16_224'
SIZES = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}


def test_every_architecture_is_known_to_timm_and_torchgeo():
    assert len(zoo.default_cfgs) == 7
    assert {*timm.list_models('explora_vit_*')} == {*zoo.default_cfgs}
    assert {*api.list_models()} >= {*zoo.default_cfgs}


@pytest.mark.parametrize(
    ('name', 'millions'),
    [
        ('explora_vit_small_patch14_224', 21.63),
        (DINOV2, 85.72),
        ('explora_vit_large_patch14_224', 303.23),
        (GROUP, 85.63),
        ('explora_vit_large_group_patch8_96', 303.08),
        (TEMPORAL, 85.72),
        ('explora_vit_large_temporal_patch16_224', 303.23),
    ],
)
def test_sizes(name, millions):
    total = sum(shape.numel() for shape in shapes(name).values())
    assert total / 1e6 == pytest.approx(millions, abs=0.01)


def test_dinov2_takes_every_multiple_of_its_patch():
    model = timm.create_model(DINOV2, num_classes=3, in_chans=4, **SIZES)
    assert model.pos_embed.shape == (1, 257, 24)
    assert model.pretrained_cfg['input_size'] == (3, 224, 224)
    for size in (224, 98):
        assert model(torch.randn(1, 4, size, size)).shape == (1, 3)


def test_dinov2_is_a_base_for_adaptation():
    vit = ViT(DINOV2, image_size=28, **SIZES)
    assert vit(torch.randn(1, 3, 42, 28)).patch.shape == (1, 6, 24)
    assert vit.arguments['model'] == DINOV2


@pytest.mark.parametrize('pool', ['avg', 'token'])
def test_group_channel_model_has_the_surface_of_timm(pool):
    options = {**SIZES, 'channel_embed_dim': 8, 'img_size': 16}
    model = timm.create_model(GROUP, num_classes=3, global_pool=pool, **options)
    image = torch.rand(2, 10, 16, 16)
    tokens = model.forward_features(image)
    assert tokens.shape == (2, 1 + 3 * 4, 24)
    pooled = model.forward_head(tokens, pre_logits=True)
    assert_close(pooled, tokens[:, 1:].mean(1) if pool == 'avg' else tokens[:, 0])
    assert_close(model(image), model.get_classifier()(pooled))
    model.reset_classifier(0)
    assert model(image).shape == (2, model.num_features)
    with pytest.raises(ValueError, match="is 'map': use 'avg' or 'token'"):
        model.reset_classifier(0, 'map')


def test_groups_are_an_argument():
    options = {**SIZES, 'channel_embed_dim': 8, 'img_size': 16, 'in_chans': 3}
    model = timm.create_model(
        GROUP, bands=['B02', 'B03', 'B11'], groups=[['B11'], ['B02', 'B03']], **options
    )
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 24)
    with pytest.raises(ValueError, match=r'is 3, .* 10 channels: B02, B03'):
        timm.create_model(GROUP, **options)


def test_temporal_model_takes_timestamps():
    options = {**SIZES, 'time_embed_dim': 12, 'img_size': 32}
    model = timm.create_model(TEMPORAL, num_classes=3, **options)
    times = torch.zeros(2, 3, 3)
    series = torch.rand(2, 3, 3, 32, 32)
    assert model(series, timestamps=times).shape == (2, 3)


def test_pretrained_means_the_authors_weights(monkeypatch):
    small = timm.create_model(DINOV2, num_classes=0, **SIZES).state_dict()
    small = {key: value + 1 for key, value in small.items()}
    asked = []

    def get_state_dict(self):
        asked.append(self)
        return small

    monkeypatch.setattr(ExploraWeights, 'get_state_dict', get_state_dict)
    model = timm.create_model(DINOV2, pretrained=True, num_classes=2, **SIZES)
    assert asked == [ExploraWeights.FMOW_RGB_BASE]
    found = model.state_dict()
    assert_close({key: found[key] for key in small}, small, rtol=0, atol=0)
    with pytest.raises(ValueError, match='no weights are published for explora_vit_sm'):
        timm.create_model('explora_vit_small_patch14_224', pretrained=True, **SIZES)


def test_torchgeo_without_its_registry_leaves_a_warning(monkeypatch):
    monkeypatch.delattr(api, '_model_weights')
    with pytest.warns(UserWarning, match='found by timm.create_model'):
        register_with_torchgeo()
