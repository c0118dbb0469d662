"""The page of TorchGeo's weights says what the code does."""

import pytest
import torchgeo

from tests.test_docs import load

weights = load('weights')


def test_tables_of_weights_are_up_to_date():
    """`python docs/weights.py` writes them."""
    page = weights.PAGE.read_text()
    if f'Of TorchGeo {torchgeo.__version__}.' not in page:
        pytest.skip('the page is of another version of TorchGeo')
    assert weights.filled(page) == page


def test_every_enum_of_torchgeo_is_on_the_page():
    page = weights.PAGE.read_text()
    assert all(f'`{kind.__name__}' in page for kind in weights.enums())
