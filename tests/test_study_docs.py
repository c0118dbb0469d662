"""Tables of the study on the pages are those of its lines."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = ROOT / 'benchmarks' / 'results' / 'study'
FILES = sorted(LINES.glob('*.jsonl'))


@pytest.fixture
def tables(monkeypatch):
    pytest.importorskip('scipy')
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module('study_tables')


@pytest.fixture
def page():
    return (ROOT / 'docs' / 'results' / 'study.md').read_text()


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_line_has_its_commit_and_seed(tables, path):
    # Changes are of contenders: the page says so.
    known = re.compile('[0-9a-f]{40}( with changes)?')
    lines = tables.rows(path)
    assert lines
    assert all(known.fullmatch(row['commit']) for row in lines)
    assert all(isinstance(row['seed'], int) for row in lines)


def test_runs_of_the_study_are_known(tables):
    lines = tables.rows(LINES / 'study.jsonl')
    assert {row['run'] for row in lines} <= set(tables.CONTENDERS)


def test_gains_are_those_of_the_lines(tables, page):
    assert tables.gains(tables.rows(LINES / 'study.jsonl')) in page


def test_first_runs_are_those_of_the_lines(tables, page):
    assert tables.each_run(tables.rows(LINES / 'first_look.jsonl')) in page


@pytest.mark.parametrize('name', ['test', 'rsscn7'])
def test_accuracies_on_the_test_split_are_those_of_the_lines(tables, page, name):
    assert tables.on_test_split(tables.rows(LINES / f'{name}.jsonl')) in page


def test_correlations_are_those_of_the_lines(tables):
    lines = tables.rows(LINES / 'study.jsonl') + tables.rows(LINES / 'first_look.jsonl')
    assert tables.correlations(lines) in (ROOT / 'docs' / 'quality.md').read_text()


def test_downstream_accuracies_are_those_of_the_lines(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    downstream = importlib.import_module('eurosat_downstream')
    lines = downstream.read(LINES.parent / 'study_downstream_64.jsonl')
    assert downstream.table(lines) in page
