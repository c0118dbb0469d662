"""A module imports only from its own layer or lower ones."""

import ast
from pathlib import Path

import pytest

import torchgeo_explora

PACKAGE = Path(torchgeo_explora.__file__).parent
LAYERS = {
    'functional': 0,
    'adapt': 1,
    'augment': 1,
    'datasets': 1,
    'models': 1,
    'datamodules': 2,
    'objectives': 2,
    'callbacks': 3,
    'tasks': 3,
    'analysis': 3,
    'cli': 4,
    'export': 4,
    'report': 4,
    'checks': 0,
    'paths': 0,
    'terminal': 0,
    'version': 0,
    'writing': 0,
}
FILES = sorted(PACKAGE.rglob('*.py'))


def _package(path):
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def _imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            assert not node.level, f'{path}: a relative import'
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split('.')
            if parts[0] == PACKAGE.name and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize(
    'path', [f for f in FILES if _package(f) != '__init__'], ids=lambda p: p.stem
)
def test_imports_go_down(path):
    layer = LAYERS[_package(path)]
    for package in _imported_packages(path):
        assert LAYERS.get(package, 0) <= layer, f'{path.name} imports {package}'


def test_functional_needs_torch_alone():
    for path in (PACKAGE / 'functional').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                root = (node.module or '').split('.')[0]
                allowed = {'torch', 'torchgeo_explora', 'collections', 'math', 'typing'}
                assert root in allowed, f'{path.name} imports {root}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_file_names_say_what_is_inside(path):
    assert path.stem not in ('utils', 'common', 'helpers', 'misc')


@pytest.mark.parametrize(
    'folder', sorted({f.parent for f in FILES}), ids=lambda p: p.name
)
def test_folders_hold_at_most_15_files(folder):
    assert len(list(folder.glob('*.py'))) <= 15


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_functions_take_at_most_30_arguments(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            count = len(given.posonlyargs + given.args + given.kwonlyargs)
            assert count <= 30, f'{path.name}: {node.name} takes {count} arguments'
