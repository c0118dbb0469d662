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


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_line_has_its_commit_and_seed(tables, path):
    # Changes are of contenders: the page says so.
    known = re.compile('[0-9a-f]{40}( with changes)?')
    lines = tables.read(path)
    assert lines
    for row in lines:
        of_run = row['run'] if isinstance(row['run'], dict) else row
        assert known.fullmatch(of_run['commit'])
        assert isinstance(row['seed'], int)


def test_runs_of_the_study_are_known(tables):
    lines = tables.rows(LINES / 'study.jsonl')
    assert {row['run'] for row in lines} <= set(tables.CONTENDERS)


@pytest.mark.parametrize('name', ['results/study.md', 'quality.md'])
def test_tables_on_the_pages_are_those_of_the_lines(tables, name):
    page = (ROOT / 'docs' / name).read_text()
    assert '<!-- table: ' in page
    assert tables.refreshed(page, tables.tables(LINES)) == page


def test_every_table_that_has_lines_is_on_a_page(tables):
    pages = (ROOT / 'docs' / name for name in ('results/study.md', 'quality.md'))
    shown = re.findall('<!-- table: (.+?) -->', ''.join(p.read_text() for p in pages))
    found = tables.tables(LINES)
    filled = {name for name, table in found.items() if len(table.splitlines()) > 2}
    assert filled <= set(shown)


@pytest.mark.parametrize(
    'between', ['\n', '\n\n', '\n\n| old |\n|---|\n', '\n| old |\n\n\n']
)
def test_tables_are_replaced_and_unknown_ones_are_errors(tables, between):
    page = f'a\n\n<!-- table: x y -->{between}b\n'
    found = {'x y': '| new |\n|---|\n| 1 |'}
    new = tables.refreshed(page, found)
    assert new == 'a\n\n<!-- table: x y -->\n\n| new |\n|---|\n| 1 |\n\nb\n'
    assert tables.refreshed(new, found) == new
    with pytest.raises(KeyError):
        tables.refreshed(page, {})
