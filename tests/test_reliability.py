"""The page on reliability says what was measured, and names tests that exist."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.attack import page

TESTS = Path(__file__).parent
TEXT = page.PAGE.read_text()
ROWS = re.findall(r'^\| (\d+) \| (.+) \| (.+) \|$', TEXT, re.MULTILINE)


def test_every_property_has_a_row():
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 38))


@pytest.mark.parametrize(('number', 'tests'), [(row[0], row[2]) for row in ROWS])
def test_every_test_of_the_page_exists(number, tests):
    named = re.findall(r'`([\w/.]+)::(\w+)`', tests)
    assert named or tests == 'no test'
    for file, name in named:
        body = ast.parse((TESTS / file).read_text()).body
        assert name in {each.name for each in body if isinstance(each, ast.FunctionDef)}


CLOCKS = {'time', 'monotonic', 'perf_counter', 'process_time', 'thread_time', 'now'}


def _reads_a_clock(node):
    if isinstance(node, ast.ImportFrom):
        return node.module == 'time' and any(n.name in CLOCKS for n in node.names)
    called = node.func if isinstance(node, ast.Call) else None
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
        return False
    name = called.attr.removesuffix('_ns')
    return called.value.id in ('time', 'datetime') and name in CLOCKS


def test_no_test_reads_a_clock():
    """F35: a test passes on a slow machine, too."""
    files = {*TESTS.rglob('*.py')} - {*(TESTS / 'attack').iterdir()}
    found = [
        f'{path.relative_to(TESTS)}:{node.lineno}'
        for path in sorted(files)
        for node in ast.walk(ast.parse(path.read_text()))
        if _reads_a_clock(node)
    ]
    assert found == []


def test_table_is_that_of_the_last_attack():
    """`make attack` writes both."""
    results = json.loads(page.RESULTS.read_text())
    shown = TEXT.split(page.START)[1].split(page.END)[0]
    assert shown == page.table(results)


def test_attack_found_nothing():
    results = json.loads(page.RESULTS.read_text())
    inputs = page.malformed(results)
    assert {name: each['bad'] for name, each in inputs.items() if each['bad']} == {}
    assert sum(sum(each['ends'].values()) for each in inputs.values()) >= 700
    kills = results['kills']['found'].values()
    assert sum(row['as unbroken'] for row in kills) >= 46
    assert all({*row} == {'as unbroken'} for row in kills)
    assert {*results['faults']['found'].values()} == {'as intended'}
