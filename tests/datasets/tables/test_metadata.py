"""When and where an image was taken."""

import math

import pytest

from torchgeo_explora.datasets.tables.metadata import (
    place_metadata,
    place_of,
    time_metadata,
)


@pytest.mark.parametrize(
    ('text', 'codes'),
    [
        ('2015-07-25T07:23:14Z', (45, 6, 7)),
        ('2015-12-31T23:30:00-02:00', (46, 0, 1)),  # the next year in UTC
        ('1972-08-01', (2, 7, 0)),
        ('2017', (47, -1, -1)),
        ('', (-1, -1, -1)),
        ('yesterday', (-1, -1, -1)),
    ],
)
def test_times_become_whole_numbers_from_0(text, codes):
    found = time_metadata(text)
    assert [int(found[key]) for key in ('year', 'month', 'hour')] == [*codes]
    assert all(str(value.dtype) == 'torch.int64' for value in found.values())


def test_places_are_degrees_or_not_known():
    found = place_metadata(*place_of('10.001 -50.002'))
    assert found['longitude'].item() == pytest.approx(10.001)
    assert found['latitude'].item() == pytest.approx(-50.002)
    assert all(map(math.isnan, place_of('')))
    assert all(value.isnan() for value in place_metadata().values())
