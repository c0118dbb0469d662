"""The benchmark of the input at toy size."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.cli
def test_toy_run_measures_every_part(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    bench = importlib.import_module('input')
    monkeypatch.setattr(bench, 'SIDE', 512)
    output = tmp_path / 'input.json'
    sizes = ['--images', '2', '--rounds', '1', '--rows', '400']
    assert bench.main(['--output', str(output), *sizes]) == 0
    found = json.loads(output.read_text())
    assert [found[part]['status'] for part in bench.PARTS] == ['done'] * 4
    assert len(found['jpeg']['images_per_second_per_core']) == 7
    assert len(found['geotiff']['images_per_second_per_core']) == 4
    assert len(found['memory']['mib_per_worker']) == 4
    assert len(found['start']['seconds_to_first_sample']) == 3
