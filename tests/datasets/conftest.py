"""Fake data sets."""

import importlib.util
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / 'data'


@pytest.fixture(scope='session')
def fake():
    """Import a generator of fake data by the name of its file."""

    def load(name):
        spec = importlib.util.spec_from_file_location(
            f'fake_{name}', DATA / f'{name}.py'
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
