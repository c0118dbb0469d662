"""The table of the page on guides is that of the result file, and shows the effect."""

import importlib
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks' / 'results' / 'guides.json'


def test_the_table_of_the_page_is_made_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    table = importlib.import_module('guides').table(json.loads(RESULTS.read_text()))
    assert table in (ROOT / 'docs' / 'guides.md').read_text()


def test_results_show_what_a_guide_and_an_adversary_do():
    """In each of three seeds, the guided factor is found better, the other worse."""
    content = json.loads(RESULTS.read_text())
    assert all(key in content for key in ('command', 'commit', 'machine'))
    for seed in range(3):
        record = content[f'seed {seed}']
        assert record['with guides']['cpu_seconds'] > 0
        without, with_ = (
            record[name]['probe'] for name in ('without guides', 'with guides')
        )
        assert with_['region'] > without['region']
        assert with_['sensor'] < without['sensor']
