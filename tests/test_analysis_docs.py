"""The page on analysis shows what was measured."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module('blocks')


def test_the_table_of_the_page_is_made_from_the_results(blocks):
    table = blocks.table(blocks.rows())
    assert table in (ROOT / 'docs' / 'analysis.md').read_text()


def test_the_picture_has_a_curve_for_each_model_and_measure(blocks):
    figure = blocks.picture(blocks.rows())
    assert len(figure.axes) == 9
    for axes in figure.axes:
        base, adapted = axes.get_lines()
        assert base.get_xdata()[-1] == adapted.get_xdata()[-1] == 1
    lasts = [axes.get_lines()[1].get_ydata()[-1] for axes in figure.axes]
    assert lasts[0] == 3.258
    assert lasts[2] == 0.13
