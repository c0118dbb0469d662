from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from torchgeo import datamodules

from torchgeo_explora.augment import UnitRange, value_range


def test_unit_range_clips_to_0_and_1():
    image = torch.tensor([-10.0, 0.0, 50.0, 100.0, 300.0]).expand(2, 3, 1, 5)
    expected = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]).expand(2, 3, 1, 5)
    assert_close(UnitRange(0, 100)(image), expected)


def test_unit_range_is_per_channel():
    image = torch.full((1, 2, 1, 1), 10.0)
    unit = UnitRange([0.0, -10.0], [100.0, 30.0])(image)
    assert_close(unit.flatten(), torch.tensor([0.1, 0.5]))
    mixed = UnitRange(0, torch.tensor([100.0, 20.0]))(image)
    assert_close(mixed.flatten(), torch.tensor([0.1, 0.5]))


def test_unit_range_leaves_its_input_alone():
    image = torch.full((1, 1, 2, 2), 7.0)
    UnitRange(0, 255)(image)
    assert (image == 7).all()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.float16])
def test_unit_range_gives_float32(dtype):
    image = torch.full((2, 3, 4, 4), 51, dtype=dtype)
    assert_close(UnitRange(0, 255)(image), torch.full((2, 3, 4, 4), 0.2))


def test_a_series_has_its_channels_third_from_the_end():
    series = torch.rand(2, 4, 3, 8, 8)
    unit = UnitRange([0.0] * 3, [1.0, 2.0, 4.0])(series)
    assert_close(unit[:, :, 2], series[:, :, 2] / 4)


def test_missing_pixels_become_0():
    image = torch.tensor([float('nan'), float('inf'), -float('inf')]).view(1, 1, 1, 3)
    assert_close(UnitRange(-5, 5)(image).flatten(), torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ('low', 'high', 'message'),
    [
        (1, 1, 'must be below'),
        ([0.0, 5.0], [1.0, 2.0], 'must be below'),
        ([0.0] * 3, [1.0] * 4, r'\*low\* has 3 values and \*high\* has 4'),
    ],
)
def test_impossible_ranges_are_refused(low, high, message):
    with pytest.raises(ValueError, match=message):
        UnitRange(low, high)


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match='range has 3 channels, the image has 13'):
        UnitRange([0.0] * 3, 1.0)(torch.rand(2, 13, 4, 4))


def test_the_range_is_no_state():
    assert not UnitRange(0, 1).state_dict()


def test_a_range_that_clips_most_pixels_is_refused():
    reflectance = torch.randint(500, 4000, (2, 3, 8, 8)).float()
    reflectance[0] = torch.nan
    with pytest.raises(ValueError, match=r'100 % .* give \*value_range\*'):
        UnitRange(0, 255).check(reflectance)
    UnitRange(0, 4000).check(reflectance)
    assert UnitRange(0, 4000).check(reflectance)
    assert not UnitRange(0, 255).check(torch.full((1, 3, 2, 2), torch.nan))


def test_some_rows_of_a_large_image_judge_its_range(monkeypatch):
    monkeypatch.setattr('torchgeo_explora.augment.ranges._LOOKED_AT', 16)
    image = torch.full((1, 2, 8, 4), torch.nan)
    image[..., ::5, :] = 300.0
    with pytest.raises(ValueError, match='100 % of the pixel values lie outside'):
        UnitRange(0, 255).check(image)
    image[..., 5, :] = 200.0
    assert UnitRange(0, 255).check(image)


def test_a_data_module_may_name_its_range():
    module = SimpleNamespace(value_range=(0, [10, 20]), mean=[5.0], std=[1.0])
    assert value_range(module) == ([0], [10, 20])


def test_a_data_module_without_statistics_is_refused():
    with pytest.raises(ValueError, match=r'has no \*mean\* and \*std\*'):
        value_range(SimpleNamespace())


@pytest.mark.parametrize(
    'name',
    [
        'CaFFeDataModule',
        'ETCI2021DataModule',
        'FireRiskDataModule',
        'NAIPChesapeakeDataModule',
        'PatternNetDataModule',
        'RESISC45DataModule',
        'SpaceNet1DataModule',
        'UCMercedDataModule',
        'VHR10DataModule',
    ],
)
def test_8_bit_images_lie_between_0_and_255(name):
    low, high = value_range(getattr(datamodules, name)())
    assert set(low) == {0}
    assert set(high) == {255}


@pytest.mark.parametrize(
    ('name', 'high'),
    [
        ('SSL4EOS12DataModule', 10000),
        ('HySpecNet11kDataModule', 10000),
        ('FieldsOfTheWorldDataModule', 3000),
    ],
)
def test_a_division_by_a_span_names_the_range(name, high):
    assert value_range(getattr(datamodules, name)()) == ([0], [high])


@pytest.mark.parametrize(
    'name', ['EuroSATDataModule', 'EuroSATSpatialDataModule', 'EuroSAT100DataModule']
)
def test_reflectance_lies_within_2_deviations(name):
    module = getattr(datamodules, name)(bands=('B04', 'B03', 'B02'))
    low, high = (torch.tensor(ends) for ends in value_range(module))
    assert_close(low, module.mean - 2 * module.std)
    assert_close(high, module.mean + 2 * module.std)
    unit = UnitRange(low, high)(module.mean[:, None, None])
    assert_close(unit.flatten(), torch.full((3,), 0.5))


@pytest.mark.parametrize('bands', ['all', 's1', 's2'])
def test_minima_and_maxima_are_the_range(bands):
    module = datamodules.BigEarthNetDataModule(bands=bands)
    low, high = value_range(module)
    part = {'all': slice(None), 's1': slice(2), 's2': slice(2, None)}[bands]
    assert low == module.mins[part].tolist()
    assert high == module.maxs[part].tolist()


def test_a_negative_span_is_turned_round():
    low, high = value_range(datamodules.SEN12MSDataModule(band_set='s1'))
    assert low == [-25, -25]
    assert high == [0, 0]


@pytest.mark.parametrize(
    'name', ['OSCDDataModule', 'SolarPlantsBrazilDataModule', 'CaBuArDataModule']
)
def test_every_range_makes_a_unit_range(name):
    module = getattr(datamodules, name)()
    low, high = value_range(module)
    assert len(low) == len(high) == len(module.mean)
    UnitRange(low, high)


def test_a_data_set_may_tell_the_range_as_it_tells_bands_and_no_data():
    dataset = SimpleNamespace(value_range=(0, 4000))
    datamodule = SimpleNamespace(train_dataset=dataset, mean=0, std=255)
    assert value_range(datamodule) == ([0], [4000])
