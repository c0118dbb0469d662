"""The benchmark of embeddings, maps and search at toy size."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.cli
@pytest.mark.filterwarnings('ignore')
def test_toy_run_measures_every_part_and_is_continued(monkeypatch, tmp_path):
    pytest.importorskip('psutil')
    pytest.importorskip('rio_cogeo')
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    bench = importlib.import_module('embeddings')
    output = tmp_path / 'embeddings.json'
    arguments = ['--folder', str(tmp_path / 'work'), '--output', str(output)]
    arguments += ['--rounds', '1', '--side', '300', '--large', '500']
    arguments += ['--vectors', '20000']
    assert bench.main([*arguments, '--parts', 'embed', 'map', 'scene']) == 0
    found = json.loads(output.read_text())
    # Two by two windows side by side, and as many that overlap.
    assert found['embed']['images'] == found['map']['images'] == 4
    for part in ('embed', 'map'):
        for clock in ('clock', 'processor'):
            assert 0 < found[part][clock]['over_bare_model'] < 2
    scene = found['scene']
    assert scene['cloud_optimised']
    assert scene['complaints'] == []
    assert scene['on_the_grid']
    assert scene['no_data_where_the_scene_has_none']
    assert 0.1 < scene['peak_gib'] < 4
    assert found['search']['status'] == 'not run'
    assert bench.main(arguments) == 0
    again = json.loads(output.read_text())
    assert {part: again[part] for part in bench.PARTS[:3]} == {
        part: found[part] for part in bench.PARTS[:3]
    }
    assert again['search']['blocks']['clock_s'] > 0
