"""What a user gets who installs the package: dependencies and configurations."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from torchgeo_explora.cli import training

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'torchgeo_explora'
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
#: Needed, but imported by others: TorchGeo imports lightly.
INDIRECT = {'lightly'}
#: Imported where a user has them; a message or another way takes their place.
OPTIONAL = {'codecarbon', 'pynvml', 'sklearn', 'torchgeo_bench', 'umap'}


def _name(requirement):
    name = re.match(r'[\w.-]+', requirement)[0]
    return re.sub(r'[-_.]+', '-', name).lower()


DISTRIBUTIONS = packages_distributions()
DEPENDENCIES = {_name(each) for each in PROJECT['dependencies']}
EXPORT = {_name(each) for each in PROJECT['optional-dependencies']['export']}


def _imported(path):
    """Yield the distribution that each import of a file comes from."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            top = name.partition('.')[0]
            ours = top in (PACKAGE.name, '_typeshed', *sys.stdlib_module_names)
            if not ours and top not in OPTIONAL:
                yield {_name(each) for each in DISTRIBUTIONS[top]}


FILES = sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_import_is_a_declared_dependency(path):
    allowed = DEPENDENCIES
    if path.is_relative_to(PACKAGE / 'export'):
        allowed = allowed | EXPORT
    missing = [names for names in _imported(path) if not names & allowed]
    assert not missing


def test_every_dependency_is_imported():
    imported = set().union(*(names for path in FILES for names in _imported(path)))
    assert DEPENDENCIES - imported == INDIRECT


def test_every_dependency_has_a_lowest_version():
    assert all('>=' in each for each in PROJECT['dependencies'])


def _shipped():
    files = (ROOT / 'configs').rglob('*')
    kinds = ('.yaml', '.safetensors')
    return {
        f'torchgeo_explora/{p.relative_to(ROOT)}' for p in files if p.suffix in kinds
    }


@pytest.mark.cli
@pytest.mark.filterwarnings('ignore')
def test_wheel_runs_the_quickstart_in_an_empty_folder(tmp_path):
    """From an unpacked wheel, the run finds its configuration and its base."""
    pytest.importorskip('setuptools')
    build = (
        'import sys; from setuptools import build_meta as b;'
        ' print(b.build_wheel(sys.argv[1]))'
    )
    source = tmp_path / 'source'
    source.mkdir()
    # Building leaves files beside the sources.
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'configs'):
        (source / name).symlink_to(ROOT / name)
    (source / 'torchgeo_explora').symlink_to(PACKAGE)
    subprocess.run(
        [sys.executable, '-c', build, str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as file:
        assert _shipped() <= {*file.namelist()}
        assert 'torchgeo_explora/report/page.html' in file.namelist()
        assert not [n for n in file.namelist() if n.endswith('make_base.py')]
        file.extractall(tmp_path / 'installed')
    empty = tmp_path / 'empty'
    empty.mkdir()
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path / "installed")!r});'
        ' import torchgeo_explora; print(torchgeo_explora.__file__);'
        ' from torchgeo_explora.cli import main; main()'
    )
    small = ['--trainer.max_steps=1', '--data.num_train=16', '--data.num_val=16']
    small += ['--data.batch_size=8', '--trainer.callbacks=null']
    run = subprocess.run(
        [sys.executable, '-c', code, 'fit', '--config', 'quickstart', *small],
        cwd=empty,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.startswith(str(tmp_path / 'installed'))
    assert [*empty.rglob('delta.safetensors')]


def test_names_of_configurations_are_found():
    for path in sorted((ROOT / 'configs').rglob('*.yaml')):
        name = path.relative_to(ROOT / 'configs').with_suffix('')
        for given in (str(name), f'configs/{name}.yaml'):
            found = Path(training.shipped_path(given))
            assert found.resolve() == path.resolve() or (ROOT / given).is_file()


def test_file_of_the_user_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert training.shipped_path('quickstart').endswith('configs/quickstart.yaml')
    (tmp_path / 'quickstart').mkdir()
    assert training.shipped_path('quickstart').endswith('configs/quickstart.yaml')
    (tmp_path / 'explora_fmow').write_text('')
    assert training.shipped_path('explora_fmow') == 'explora_fmow'
    assert training.shipped_path('mine.yaml') == 'mine.yaml'
    with pytest.raises(ValueError, match=r'quickstrt is neither .*, quickstart$'):
        training.shipped_path('quickstrt')
