"""What pictures of samples share."""

import pytest

from torchgeo_explora.datasets.pixels.figure import colour_indices


@pytest.mark.parametrize(
    ('bands', 'channels', 'expected'),
    [
        (['B02', 'B03', 'B04', 'B08'], 4, [2, 1, 0]),
        (['nir', 'blue', 'green', 'red'], 4, [3, 2, 1]),
        (('B4', 'B3', 'B2'), 3, [0, 1, 2]),
        (['B04', 'B03'], 2, [0, 1, 1]),
        ((), 5, [0, 1, 2]),
        ((), 1, [0, 0, 0]),
    ],
)
def test_colours_are_found_by_name_or_are_the_first_three(bands, channels, expected):
    assert colour_indices(bands, channels) == expected
