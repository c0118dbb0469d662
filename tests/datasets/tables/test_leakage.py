import pytest

from torchgeo_explora.datasets.tables.problems import warn_of_shared_places


def test_shared_places_are_counted():
    places = {'train': ['a', 'b', 'b', ''], 'val': ['b', 'c', ''], 'test': ['a', 'b']}
    message = (
        r"X has .* \(1 in both 'train' and 'val'; 2 in both 'train' and 'test'; 1 in"
        r" both 'val' and 'test'\), such as a: "
    )
    with pytest.warns(UserWarning, match=message):
        assert warn_of_shared_places(places, 'X') == 2


def test_separate_places_are_silent(recwarn):
    assert warn_of_shared_places({'train': ['a', ''], 'val': ['b', '']}, 'X') == 0
    assert not recwarn.list
