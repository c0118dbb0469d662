"""Tables of the study on the pages are those of its lines."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = ROOT / 'benchmarks' / 'results' / 'study.jsonl'


@pytest.fixture
def study(monkeypatch):
    pytest.importorskip('scipy')
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module('study')


def test_every_line_has_its_commit_and_seed(study):
    lines = study.rows(LINES)
    # Changes are of contenders: the page says so.
    known = re.compile('[0-9a-f]{40}( with changes)?')
    assert all(known.fullmatch(row['commit']) for row in lines)
    assert all(row['run'] in study.CONTENDERS for row in lines)


def test_gains_are_those_of_the_lines(study):
    table = study.gains(study.rows(LINES))
    assert table in (ROOT / 'docs' / 'results' / 'study.md').read_text()


def test_correlations_are_those_of_the_lines(study):
    lines = [row for row in study.rows(LINES) if 'small' not in row['run']]
    assert study.correlations(lines) in (ROOT / 'docs' / 'quality.md').read_text()
