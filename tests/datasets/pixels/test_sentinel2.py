import pytest

from torchgeo_explora.datasets.pixels.sentinel2 import (
    BANDS,
    MEAN,
    STD,
    reflectance_range,
)


def test_range_follows_the_names():
    low, high = reflectance_range(['B8A', 'B02'])
    assert low == (MEAN['B8A'] - 2 * STD['B8A'], MEAN['B02'] - 2 * STD['B02'])
    assert high == (MEAN['B8A'] + 2 * STD['B8A'], MEAN['B02'] + 2 * STD['B02'])


def test_narrow_infrared_stands_between_b08_and_b09():
    assert BANDS[7:10] == ('B08', 'B8A', 'B09')
    # SatMAE's file order: B8A is 1972.62, B09 582.73, B10 14.77.
    assert [round(MEAN[b], 2) for b in BANDS[8:11]] == [1972.62, 582.73, 14.77]


def test_unknown_bands_are_named():
    with pytest.raises(ValueError, match=r"\['B13'\], which are not among"):
        reflectance_range(['B02', 'B13'])
