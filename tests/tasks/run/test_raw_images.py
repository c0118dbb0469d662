"""Raw batches: the data module's normalisation is taken over before the first one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import ConcatDataset, Dataset
from torchgeo import datamodules

from torchgeo_explora.datasets.pixels.sentinel2 import reflectance_range
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks.run.raw_images import (
    RawImages,
    band_names,
    require_predict_set,
    select_bands,
    take_over_normalization,
    unit_range,
)


def _raw(count=2, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 8, 8), generator=generator).float()


@pytest.mark.parametrize(
    'name', ['RESISC45DataModule', 'SpaceNet1DataModule', 'EuroSATDataModule']
)
@pytest.mark.parametrize('stage', ['training', 'validating', 'testing', 'predicting'])
def test_batches_come_as_they_are_read(name, stage):
    module = getattr(datamodules, name)()
    take_over_normalization(module)
    stages = ('training', 'validating', 'sanity_checking', 'testing', 'predicting')
    module.trainer = SimpleNamespace(**{key: key == stage for key in stages})
    image = _raw(channels=len(module.mean.flatten()) if module.mean.ndim else 3)
    batch = module.on_after_batch_transfer({'image': image.clone()}, 0)
    assert torch.equal(batch['image'], image)


def test_augmentation_that_is_not_there_stays_away():
    module = SimpleNamespace(train_aug=None)
    take_over_normalization(module)
    assert list(vars(module)) == ['train_aug']
    assert isinstance(module.train_aug, nn.Identity)
    take_over_normalization(None)


def test_a_given_range_goes_before_the_data_modules():
    module = SimpleNamespace(value_range=(0.0, 255.0))
    image = _raw()
    assert_close(unit_range((0, 1000), module)(image), image / 1000)
    assert_close(unit_range(None, module)(image), image / 255)


def test_a_given_range_may_be_per_channel():
    image = torch.full((1, 2, 1, 1), 30.0)
    unit = unit_range(([0, 20], [60, 40]), None)(image)
    assert_close(unit.flatten(), torch.tensor([0.5, 0.5]))


def test_no_range_at_all_asks_for_one():
    with pytest.raises(ValueError, match=r'give \*value_range\* as \[low, high\]'):
        unit_range(None, None)
    with pytest.raises(ValueError, match=r'SimpleNamespace has no \*mean\*'):
        unit_range(None, SimpleNamespace())


def _ends(unit):
    return unit.low.flatten(), unit.high.flatten()


@pytest.mark.parametrize(
    'module',
    [
        SimpleNamespace(bands=['B2', 'B8A'], mean=0, std=10000),
        SimpleNamespace(bands=['B02', 'B8A'], mean=[1000, 2000], std=[300, 400]),
        # What TorchGeo says of a Sentinel-2 raster that it knows nothing of.
        SimpleNamespace(bands=['B02', 'B8A'], mean=0, std=255),
        # The usual scale of 16 bits, which nobody asked for.
        SimpleNamespace(
            bands=['B02', 'B8A'], value_range=(0, 10000), range_known=False
        ),
    ],
)
def test_sentinel2_has_the_range_of_satmae(module):
    low, high = _ends(unit_range(None, module, ['B8A', 'B02']))
    expected = reflectance_range(['B8A', 'B02'])
    assert_close((low, high), tuple(torch.tensor(end) for end in expected))


@pytest.mark.parametrize('names', [['B2', 'B3'], ['B2', 'B3', 'B11'], ['red', 'B4']])
def test_landsat_does_not_get_the_range_of_sentinel2(names):
    module = SimpleNamespace(bands=names, mean=0, std=10000)
    low, high = _ends(unit_range(None, module, names[:2]))
    assert (low.tolist(), high.tolist()) == ([0], [10000])


def test_loaders_without_a_data_module_give_the_bands_as_they_are():
    image = torch.rand(1, 2, 4, 4)
    assert select_bands(None, ['B02', 'red'])(image) is image


def test_the_users_range_goes_before_that_of_satmae():
    module = SimpleNamespace(bands=['B02', 'B8A'], value_range=(0, 3000))
    for unit in (
        unit_range((0, 3000), SimpleNamespace(bands=['B02', 'B8A']), ['B8A']),
        unit_range(None, module, ['B8A']),
    ):
        assert_close(_ends(unit), (torch.tensor([0.0]), torch.tensor([3000.0])))


def test_ranges_of_bands_follow_the_bands_that_are_picked():
    module = SimpleNamespace(
        bands=['B02', 'B8A', 'B12'], value_range=([1, 2, 3], [10, 20, 30])
    )
    low, high = _ends(unit_range(None, module, ['B12', 'B2']))
    assert (low.tolist(), high.tolist()) == ([3, 1], [30, 10])
    other = SimpleNamespace(bands=['VV', 'VH'], mean=[900.0, 800.0], std=[20.0, 30.0])
    low, high = _ends(unit_range(None, other, ['VH']))
    assert (low.tolist(), high.tolist()) == ([740], [860])


def test_bands_are_those_of_the_data_module_or_of_its_data_sets():
    images = SimpleNamespace(bands=['B02', 'B03'])
    assert band_names(images) == ('B02', 'B03')
    assert band_names(SimpleNamespace(bands=(), val_dataset=images)) == ('B02', 'B03')
    subset = SimpleNamespace(dataset=SimpleNamespace(dataset=images))
    assert band_names(SimpleNamespace(train_dataset=subset)) == ('B02', 'B03')
    many = ConcatDataset([Bands(['B02']), Bands(['B02'])])
    assert band_names(SimpleNamespace(dataset=many)) == ('B02',)


class Bands(Dataset):
    """A data set that names its bands."""

    def __init__(self, bands):
        self.bands = bands

    def __len__(self):
        return 1


@pytest.mark.parametrize(
    'module',
    [
        SimpleNamespace(),
        SimpleNamespace(bands='s2'),
        SimpleNamespace(bands=[1, 2, 3]),
        SimpleNamespace(dataset=SimpleNamespace(bands=['B02'], is_image=False)),
    ],
)
def test_a_data_module_without_names_of_bands_says_so(module):
    assert band_names(module) is None
    with pytest.raises(ValueError, match=r'does not name the bands .*takes B02, B03'):
        select_bands(module, ['B02', 'B03'])


@pytest.mark.parametrize('name', ['EuroSATDataModule', 'RESISC45DataModule'])
def test_nothing_to_predict_on_is_an_error(name):
    module = getattr(datamodules, name)()
    module.setup('predict')
    with pytest.raises(ValueError, match=f'{name} has no predict set.*ImageFolder'):
        require_predict_set(module)


@pytest.mark.parametrize('attribute', ['predict_dataset', 'dataset'])
def test_a_predict_set_is_accepted_once_it_is_there(attribute):
    module = SimpleNamespace(**{attribute: None})
    with pytest.raises(ValueError, match='SimpleNamespace has no predict set'):
        require_predict_set(module)
    setattr(module, attribute, [1])
    assert require_predict_set(module) is None


def test_own_loaders_without_a_data_module_are_accepted():
    assert require_predict_set(None) is None


class Module16Bit:
    """A data module whose range is only the usual one."""

    value_range = (0.0, 10_000.0)
    range_known = False


def raw_images(*given):
    small = {'patch_size': 8, 'embed_dim': 24, 'depth': 1, 'num_heads': 2}
    backbone = ViT('vit_tiny_patch16_224', image_size=8, **small)
    return RawImages(backbone, Module16Bit(), *given)


def test_values_that_fill_little_of_a_guessed_range_are_reported(recwarn):
    dull = torch.linspace(200, 2800, 3 * 64).view(1, 3, 8, 8)
    images = raw_images()
    images.advises = True
    with pytest.warns(UserWarning, match=r'such as \[200, 2800\], for more'):
        images(dull)
    recwarn.clear()
    images(dull)  # once
    wide, stated, later = raw_images(), raw_images((0, 10_000)), raw_images()
    wide.advises = stated.advises = True
    wide(3 * dull)
    wide(dull)
    stated(dull)
    later(dull)
    empty = raw_images()
    empty.advises = True
    empty(torch.zeros(1, 3, 8, 8))
    assert not recwarn.list


def test_the_range_that_is_suggested_holds_the_values(recwarn):
    images = raw_images()
    images.advises = True
    with pytest.warns(UserWarning, match=r'such as \[5002, 5046\], for more'):
        images(torch.linspace(5002.5, 5045.5, 3 * 64).view(1, 3, 8, 8))
