"""`explora compare`: a page and a table of several runs."""

import csv
import json
import shutil

import pytest
import yaml

from tests.report.conftest import write_events
from tests.report.html_page import Parsed, check
from torchgeo_explora.cli import main
from torchgeo_explora.report import compare_runs
from torchgeo_explora.report.compare import differences


@pytest.fixture
def pair(finished, tmp_path):
    """Two runs that differ in the rate, and in what came out."""
    one = shutil.copytree(finished, tmp_path / 'one')
    other = shutil.copytree(finished, tmp_path / 'other')
    logs = other / 'lightning_logs' / 'version_0'
    shutil.rmtree(logs)
    write_events(logs, knn=(0.25, 0.75, 0.5), shift=1.0)
    text = (one / 'lightning_logs/version_0/config.yaml').read_text()
    config = yaml.safe_load(text)
    config['model']['init_args']['base_lr'] = 0.02
    config['trainer']['default_root_dir'] = 'elsewhere'
    config['trainer']['callbacks'] = [{'class_path': 'a.B', 'init_args': {'k': 3}}]
    (logs / 'config.yaml').write_text(yaml.safe_dump(config))
    cost = json.loads((other / 'cost.json').read_text())
    (other / 'cost.json').write_text(json.dumps({**cost, 'wall_seconds': 60}))
    return one, other


def table(path):
    with path.open(newline='') as file:
        return {row['run']: row for row in csv.DictReader(file)}


def test_table_has_what_differs_and_what_came_out(pair, tmp_path):
    compare_runs(pair, tmp_path / 'out.html')
    rows = table(tmp_path / 'out.csv')
    assert [*rows] == ['one', 'other']
    assert rows['one']['model.base_lr'] == '0.01'
    assert rows['other']['model.base_lr'] == '0.02'
    assert rows['other']['trainer.callbacks[0].k'] == '3'
    # What is the same is left out, and so is where a run is.
    assert not {'model.rank', 'trainer.default_root_dir'} & {*rows['one']}
    found = [
        (float(row['knn before']), float(row['knn after']), float(row['knn best']))
        for row in rows.values()
    ]
    assert found == [(0.25, 0.375, 0.5), (0.25, 0.5, 0.75)]
    assert rows['other']['step of the best'] == '20'
    assert [row['wall_seconds'] for row in rows.values()] == ['5400.0', '60']
    assert rows['one']['notation'] == 'D-[4]-r2'
    assert rows['one']['finished'] == 'yes'


def test_page_shows_table_and_curves(pair, tmp_path):
    compare_runs(pair, tmp_path / 'out.html')
    page = Parsed(tmp_path / 'out.html')
    check(page)
    assert '2 runs compared' in page.text
    assert 'model.base_lr 0.01 0.02' in page.text
    assert 'knn best 0.5 0.75' in page.text
    drawn = [a['aria-label'] for a in page.all('svg') if 'aria-label' in a]
    assert drawn == [
        *('kNN accuracy', 'effective rank (RankMe)', 'loss', 'train/momentum')
    ]
    # A legend tells two lines apart.
    lines = page.all('line')
    assert len({line['stroke'] for line in lines}) == 2


def test_runs_of_one_name_are_told_apart(finished, tmp_path):
    for parent in ('a', 'b'):
        shutil.copytree(finished, tmp_path / parent / 'run')
    folders = [tmp_path / 'a/run', tmp_path / 'b/run']
    rows = compare_runs(folders, tmp_path / 'out.html')
    assert [row['run'] for row in rows] == ['a/run', 'b/run']
    assert 'No settings differ' in Parsed(tmp_path / 'out.html').text


def test_a_run_that_has_only_begun_is_one_of_them(pair, tmp_path):
    other = pair[1]
    for name in ('delta.safetensors', 'cost.json'):
        (other / name).unlink()
    (other / 'lightning_logs/version_0/config.yaml').unlink()
    (events,) = other.glob('**/events.out*')
    events.write_bytes(b'')
    rows = compare_runs(pair, tmp_path / 'out.html')
    assert 'knn after' not in rows[1]
    assert 'finished' not in rows[1]
    page = Parsed(tmp_path / 'out.html')
    check(page)
    assert 'other: No curves were found' in page.text


def test_no_cell_is_a_formula_of_a_spreadsheet(pair, tmp_path):
    path = pair[1] / 'lightning_logs/version_0/config.yaml'
    config = yaml.safe_load(path.read_text())
    config['model']['init_args']['model'] = '=cmd|"/c calc"!A1'
    path.write_text(yaml.safe_dump(config))
    compare_runs(pair, tmp_path / 'out.html')
    rows = table(tmp_path / 'out.csv')
    assert rows['other']['model.model'] == '\'=cmd|"/c calc"!A1'


def test_settings_of_every_kind_are_compared():
    found = differences(
        [
            {'a': {'b': [1, 2], 'c': None}, 'd': 1, 'folder': 'x'},
            {'a': {'b': [1, 3], 'c': None}, 'e': True, 'folder': 'y'},
            {},
        ]
    )
    assert found == [
        {'a.b': '[1, 2]', 'a.c': '-', 'd': '1', 'e': ''},
        {'a.b': '[1, 3]', 'a.c': '-', 'd': '', 'e': 'yes'},
        {'a.b': '', 'a.c': '', 'd': '', 'e': ''},
    ]


def test_command_writes_both_files(pair, tmp_path, capsys):
    output = tmp_path / 'deep' / 'all.html'
    main(['compare', *map(str, pair), '--output', str(output)])
    assert (
        capsys.readouterr().out == f'wrote {output} and {output.with_suffix(".csv")}\n'
    )
    with pytest.raises(SystemExit, match=r'name that ends in \.html'):
        main(['compare', str(pair[0]), '--output', str(tmp_path / 'all.csv')])
    with pytest.raises(SystemExit, match='no folder'):
        main(['compare', str(tmp_path / 'none'), '--output', str(output)])
