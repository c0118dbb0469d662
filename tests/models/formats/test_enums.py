"""TorchGeo's weights enums: fed as their own transforms feed them, or refused."""

import inspect
from types import SimpleNamespace

import kornia.augmentation as K
import pytest
import timm
import torch
import torchgeo.models
import torchvision.transforms.v2 as T
from torch import nn
from torch.testing import assert_close
from torchvision.models._api import Weights, WeightsEnum

from torchgeo_explora import ExploraWeights
from torchgeo_explora.augment import Preprocess
from torchgeo_explora.models import RotaryViT, ViT
from torchgeo_explora.models.formats.enums import as_enum, misfit, trained_on
from torchgeo_explora.tasks.run.backbone import build_backbone, statistics
from torchgeo_explora.tasks.run.raw_images import RawImages

KINDS = [
    kind
    for _, kind in inspect.getmembers(torchgeo.models, inspect.isclass)
    if issubclass(kind, WeightsEnum) and len(kind)
]
ENUMS = [weights for kind in KINDS for weights in kind]
PLAIN = [weights for weights in ENUMS if misfit(weights) is None]
OTHER = [weights for weights in ENUMS if weights not in PLAIN]
MOCO = torchgeo.models.ViTSmall16_Weights.SENTINEL2_ALL_MOCO
LANDSAT = torchgeo.models.ViTSmall16_Weights.LANDSAT_ETM_TOA_MOCO
RADAR = torchgeo.models.ViTSmall14_DINOv2_Weights.SENTINEL1_GRD_SOFTCON
SIZES = {'embed_dim': 24, 'depth': 1, 'num_heads': 2}
#: Some sensor value of each channel, within the sensor's range.
VALUES = {
    'S2': lambda c: torch.linspace(30, 9990, c),
    'S1': lambda c: torch.tensor([-11.3, -21.7])[:c],
    'Landsat': lambda c: torch.linspace(3, 254, c),
}


def sensor(weights):
    name = weights.name.partition('_')[0]
    return {'SENTINEL2': 'S2', 'SENTINEL1': 'S1', 'LANDSAT': 'Landsat'}[name]


@pytest.fixture
def download(monkeypatch):
    """Give every enum a small file in the format of its own: timm's names."""

    def state_dict(self, *args, **kwargs):
        torch.manual_seed(0)
        vit = timm.create_model(
            self.meta['model'],
            in_chans=self.meta['in_chans'],
            img_size=224,
            num_classes=0,
            **SIZES,
        )
        return vit.state_dict()

    monkeypatch.setattr(WeightsEnum, 'get_state_dict', state_dict)


def built(weights, **options):
    model = weights.meta['model']
    return build_backbone(model, weights, model_args=SIZES, **options)


def constant(values):
    """Return a batch whose channels have one value each: no resizing changes it."""
    return values[None, :, None, None].expand(1, -1, 224, 224).contiguous()


@pytest.mark.parametrize('weights', PLAIN, ids=str)
def test_first_layer_gets_the_numbers_of_torchgeos_transform(weights, download):
    """To 1e-6, or 1e-6 of the largest, in the order of the weights, picked by name."""
    backbone = built(weights)
    bands = list(weights.meta['bands'])
    assert backbone.bands == tuple(bands)
    assert backbone.in_channels == weights.meta['in_chans']
    expected = constant(VALUES[sensor(weights)](len(bands)))
    # The data have their bands in another order, and others between them.
    names = ['other', *reversed(bands)]
    image = torch.cat([expected[:, :1] * 0, expected.flip(1)], dim=1)
    raw = RawImages(backbone, SimpleNamespace(bands=names))
    mean, std = statistics(backbone)

    found = Preprocess(224, mean, std)(raw(image))

    expected = weights.transforms(expected.double()).float()
    scale = max(1.0, float(expected.abs().max()))
    assert_close(found, expected, atol=1e-6 * scale, rtol=0)
    assert backbone(found).cls.shape == (1, 24)


@pytest.mark.parametrize('weights', OTHER, ids=str)
def test_other_architectures_are_refused_with_the_reason(weights, monkeypatch):
    def fail(self, *args, **kwargs):
        raise AssertionError('downloaded before it was refused')

    monkeypatch.setattr(WeightsEnum, 'get_state_dict', fail)
    with pytest.raises(ValueError, match='cannot be loaded into a plain ViT: '):
        ViT('vit_tiny_patch16_224', weights, in_channels=3)


def test_scale_mae_is_refused_for_its_positions_and_dofa_has_its_own_class():
    name = 'ScaleMAELarge16_Weights.FMOW_RGB'
    with pytest.raises(ValueError, match=r'ground sampling distance.*; ViT takes'):
        ViT('vit_large_patch16_224', name)
    with pytest.raises(ValueError, match=r'use .*models\.DOFAViT$'):
        ViT('vit_base_patch16_224', 'DOFABase16_Weights.DOFA_MAE')
    with pytest.raises(ValueError, match='not a Vision Transformer'):
        RotaryViT('vit_small_patch16_dinov3', 'ResNet18_Weights.SENTINEL2_RGB_MOCO')
    with pytest.raises(ValueError, match=r'use .*models\.GroupChannelViT$'):
        ViT('vit_large_patch16_224', ExploraWeights.FMOW_SENTINEL)


def test_values_outside_the_range_of_the_sensor_are_clipped(download):
    backbone = built(MOCO)
    raw = RawImages(backbone, SimpleNamespace(bands=MOCO.meta['bands']))
    values = torch.full((13,), 5000.0)
    values[0], values[1] = -100, 14000
    assert raw(constant(values))[0, :3, 0, 0].tolist() == [0, 1, 0.5]


def test_wrong_number_of_channels_gets_a_sentence(download):
    with pytest.raises(ValueError, match=r'\*in_channels\* is 12, and .*MOCO takes 13'):
        built(MOCO, in_channels=12)
    backbone = ViT('vit_small_patch16_224', in_channels=3, **SIZES)
    with pytest.raises(ValueError, match=r'B1, B2, .*; leave \*in_channels\* out'):
        backbone.start_from(MOCO)
    assert backbone.bands is None


def test_model_of_another_size_gets_a_sentence(download):
    with pytest.raises(ValueError, match=r'patch16_224, 24 wide .* is 48 wide'):
        ViT('vit_small_patch16_224', MOCO, **SIZES | {'embed_dim': 48})


def test_size_of_the_images_is_that_of_the_weights(download):
    model = RADAR.meta['model']
    assert ViT(model, RADAR, **SIZES).image_size == (224, 224)
    assert ViT(model, RADAR, image_size=56, **SIZES).image_size == (56, 56)


def test_a_missing_band_is_named(download):
    backbone = built(MOCO)
    bands = [band for band in MOCO.meta['bands'] if band != 'B10']
    with pytest.raises(ValueError, match='takes B10, which the images do not have'):
        RawImages(backbone, SimpleNamespace(bands=bands))


def test_both_gains_of_landsats_thermal_band_are_told_apart(download):
    backbone = built(LANDSAT)
    bands = list(LANDSAT.meta['bands'])
    raw = RawImages(backbone, SimpleNamespace(bands=bands[::-1]))
    assert raw.select.indices == tuple(range(8, -1, -1))


def test_images_without_names_are_taken_in_the_order_of_the_weights(download):
    backbone = built(MOCO)
    with pytest.warns(UserWarning, match='does not name the bands .* B1, B2, B3'):
        raw = RawImages(backbone, SimpleNamespace())
    assert raw(constant(torch.linspace(0, 10000, 13)))[0, -1, 0, 0] == 1
    with pytest.raises(ValueError, match=r'expected \(B, 13, H, W\)'):
        raw(torch.zeros(1, 12, 8, 8))
    # Of files that name none, a folder gives the numbers.
    numbers = tuple(str(number) for number in range(1, 14))
    with pytest.warns(UserWarning, match='does not name the bands'):
        raw = RawImages(backbone, SimpleNamespace(bands=numbers))
    assert raw(constant(torch.linspace(0, 10000, 13)))[0, -1, 0, 0] == 1
    assert raw.bands == backbone.bands
    with pytest.raises(ValueError, match=r'takes B1, B2, .* which the images do'):
        RawImages(backbone, SimpleNamespace(bands=numbers[:-1]))


def test_another_unit_of_the_images_is_kept_and_said(download):
    backbone = built(MOCO)
    module = SimpleNamespace(bands=MOCO.meta['bands'], value_range=(0, 255))
    with pytest.warns(UserWarning, match='range of the data module is used'):
        raw = RawImages(backbone, module)
    assert raw.value_range == [[0], [255]]
    module.value_range = (0, 3000)
    with pytest.warns(UserWarning, match='range of the weights is used'):
        raw = RawImages(backbone, module)
    assert raw.value_range == [[0] * 13, [10000] * 13]
    raw = RawImages(backbone, module, (0, 3000))
    assert raw.value_range == [[0], [3000]]


def test_bands_and_range_are_arguments_that_build_it_again(download):
    backbone = built(MOCO, image_size=32)
    again = ViT(**backbone.arguments)
    assert (again.bands, again.value_range) == (backbone.bands, backbone.value_range)
    own = ViT(
        'vit_tiny_patch16_224',
        bands=['red', 'nir'],
        value_range=[[0, 0], [255, 1000]],
        **SIZES,
    )
    assert own.in_channels == 2
    assert own.bands == ('red', 'nir')
    with pytest.raises(ValueError, match=r'\*bands\* has 1 names, red, .* = 2'):
        ViT('vit_tiny_patch16_224', in_channels=2, bands=['red'], **SIZES)
    with pytest.raises(ValueError, match=r'\*value_range\* has \[1, 2\] values'):
        ViT(**own.arguments | {'value_range': [[0], [1, 1]]})


@pytest.mark.parametrize('kind', [T, K], ids=['torchvision', 'kornia'])
def test_several_normalisations_are_joined_to_one(kind):
    chain = [kind.Normalize([0.0], [255.0]), kind.Normalize([0.5], [0.25])]
    weights = Weights('', nn.Sequential(*chain), {'in_chans': 2})
    found = trained_on(SimpleNamespace(meta=weights.meta, transforms=chain))
    assert found.value_range == ((0, 0), (255, 255))
    assert_close((found.mean, found.std), ((0.5, 0.5), (0.25, 0.25)))


def test_enums_of_our_own_and_names_are_understood():
    assert as_enum('ViTSmall16_Weights.SENTINEL2_ALL_MOCO') is MOCO
    assert as_enum('ExploraWeights.FMOW_RGB') is ExploraWeights.FMOW_RGB
    for other in (True, 'base.pth', 'vit_tiny_patch16_224.augreg_in21k', 'A.B'):
        assert as_enum(other) is None
    found = trained_on(ExploraWeights.FMOW_RGB)
    assert found.value_range == ((0, 0, 0), (255, 255, 255))
    assert_close(found.mean, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    'names', [('blue', 'green', 'red'), ('B02', 'B03', 'B04'), ('B', 'G', 'R')]
)
def test_blue_green_and_red_change_places_for_a_base_of_natural_images(names):
    """The range of each band goes with it."""
    backbone = ViT('vit_tiny_patch16_224', image_size=32, **SIZES)
    module = SimpleNamespace(bands=names, value_range=([0, 0, 0], [10, 20, 40]))
    raw = RawImages(backbone, module)
    image = constant(torch.tensor([1.0, 10.0, 30.0]))
    assert_close(raw(image)[0, :, 0, 0], torch.tensor([0.75, 0.5, 0.1]))
    assert raw.bands == names[::-1]
    module.bands = names[::-1]
    assert_close(RawImages(backbone, module)(image)[0, 0, 0, 0], torch.tensor(0.1))
    module.bands = ('1', '2', '3')
    assert RawImages(backbone, module).bands == ('1', '2', '3')
