import pytest
import torch
from torch.testing import assert_close
from torchgeo.datasets import SSL4EOS12, EuroSAT, Sentinel2

from torchgeo_explora.augment import (
    Quantize,
    SelectBands,
    UnitRange,
    band_indices,
    spell_band,
)
from torchgeo_explora.datasets.pixels.sentinel2 import BANDS, reflectance_range
from torchgeo_explora.models.backbones.group_channel import SATMAE_BANDS


@pytest.mark.parametrize(
    ('name', 'spelling'),
    [
        ('B02', 'B02'),
        ('B2', 'B02'),
        ('b8a', 'B8A'),
        ('B08A', 'B8A'),
        ('B12', 'B12'),
        ('S2_B8A', 'B8A'),
        ('B4, central wavelength 665 nm', 'B04'),
        ('B11_20m', 'B11'),
        ('B8B', 'B8B'),
        ('B123', 'B123'),
        ('blue', 'blue'),
        ('VV', 'VV'),
    ],
)
def test_sentinel2_bands_have_one_spelling(name, spelling):
    assert spell_band(name) == spelling


@pytest.mark.parametrize(
    'available',
    [
        EuroSAT.all_band_names,
        SSL4EOS12.metadata['s2c']['bands'],
        SSL4EOS12.metadata['s2a']['bands'],
        Sentinel2.all_bands,
        BANDS,
    ],
    ids=['EuroSAT', 'SSL4EO-S12 L1C', 'SSL4EO-S12 L2A', 'Sentinel-2', 'file order'],
)
def test_torchgeos_products_hold_the_bands_of_satmae(available):
    chosen = [available[i] for i in band_indices(available, SATMAE_BANDS)]
    assert [spell_band(name) for name in chosen] == list(SATMAE_BANDS)


def test_eurosat_has_narrow_infrared_last():
    # By index one would read B11 as B09, and B8A as B12.
    assert band_indices(EuroSAT.all_band_names, ['B8A', 'B09', 'B11']) == (12, 8, 10)


def test_missing_bands_are_named_in_a_sentence():
    level2a = SSL4EOS12.metadata['s2a']['bands']
    with pytest.raises(
        ValueError,
        match=r'B10, which the images do not have: their bands are B1, ',
    ):
        SelectBands(level2a, BANDS)
    with pytest.raises(ValueError, match='B05, B8A, which the images do not have'):
        SelectBands(['B02', 'B03'], ['B05', 'B02', 'B8A'])


def test_a_band_that_is_there_twice_is_refused_only_if_wanted():
    available = ['B1', 'B6', 'B06', 'B7']
    assert band_indices(available, ['B7', 'B1']) == (3, 0)
    with pytest.raises(ValueError, match='takes B6, which the images have more than'):
        band_indices(available, ['B6'])


def test_two_spellings_of_one_band_are_refused():
    with pytest.raises(ValueError, match='B2, B02, which are spellings of one band'):
        band_indices(['B02', 'B03'], ['B2', 'B03', 'B02'])


def test_bands_come_in_the_order_wanted():
    image = torch.rand(2, 3, 4, 4)
    select = SelectBands(['B12', 'B2', 'B3'], ['B03', 'B12'])
    assert torch.equal(select(image), image[:, [2, 0]])
    assert torch.equal(select(image[0]), image[0, [2, 0]])
    series = torch.rand(2, 5, 3, 4, 4)
    assert torch.equal(select(series), series[:, :, [2, 0]])


def test_bands_that_fit_are_passed_on_as_they_are():
    image = torch.rand(1, 2, 4, 4)
    assert SelectBands(['B02', 'B03'], ['B02', 'B03'])(image) is image


def test_an_image_with_other_channels_is_refused():
    select = SelectBands(['B02', 'B03'], ['B02'])
    with pytest.raises(ValueError, match=r'4 channels .*expected the 2 bands B02, B03'):
        select(torch.rand(1, 4, 8, 8))


def test_sentinel2_values_are_normalised_as_satmae_does(golden):
    tensors, config = golden('sentinel_normalization')
    raw = tensors['in.sentinel.img_hwc'].permute(2, 0, 1)
    unit = UnitRange(*reflectance_range(BANDS))(raw)
    expected = tensors['out.sentinel.to_tensor_chw']
    assert torch.equal(Quantize()(unit), expected)
    # Cut down, not rounded: up to one step of 8 bits is lost.
    assert (unit - expected).min() >= 0
    assert 0.9 / 255 < (unit - expected).max() <= 1 / 255

    kept = [
        band for i, band in enumerate(BANDS) if i not in config['dropped']['standard']
    ]
    assert kept == list(SATMAE_BANDS)
    chosen = SelectBands(BANDS, SATMAE_BANDS)(raw)
    found = Quantize()(UnitRange(*reflectance_range(SATMAE_BANDS))(chosen))
    assert_close(found, tensors['out.sentinel.kept_tensor.standard'])


def test_quantized_values_are_those_of_8_bits():
    unit = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    steps = Quantize()(unit) * 255
    assert_close(steps, steps.round())
    assert Quantize()(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
