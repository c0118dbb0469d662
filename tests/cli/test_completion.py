"""The script for bash, asked as bash asks it."""

import shlex
import shutil
import subprocess

import pytest

from torchgeo_explora.cli import main

pytestmark = pytest.mark.cli


@pytest.fixture(scope='module')
def complete(tmp_path_factory):
    """Return a function that gives what bash offers after some words."""
    if shutil.which('bash') is None:
        pytest.skip('there is no bash')
    script = tmp_path_factory.mktemp('completion') / 'explora.bash'
    with (
        script.open('w') as file,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr('sys.stdout', file)
        main(['completion'])

    def ask(*words):
        code = (
            f'source {script}; COMP_WORDS=({shlex.join(words)});'
            f' COMP_CWORD={len(words) - 1}; _explora;'
            ' printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ['bash', '-c', code], capture_output=True, text=True, check=True
        )
        assert not done.stderr
        return done.stdout.split()

    return ask


def test_commands(complete):
    assert {'info', 'export', 'fit', 'predict'} <= {*complete('explora', '')}
    assert complete('explora', 'val') == ['validate']


def test_options_of_commands_and_of_training(complete):
    assert complete('explora', 'export', 'a', 'b', '--for') == ['--format']
    assert '--trainer.max_steps' in complete('explora', 'fit', '--trainer.max')
    assert '--trainer.devices' in complete('explora', 'predict', '--trainer.dev')
    long = ['--config', 'a', '--config', 'b', '--config', 'c', '--config', 'd']
    assert '--ckpt_path' in complete('explora', 'fit', *long, '--ck')


def test_values_and_class_names(complete):
    formats = complete('explora', 'export', 'a', 'b', '--format', 'p')
    assert formats == ['peft', 'peft-transformers']
    # As bash splits --format=on.
    assert complete('explora', 'export', 'a', 'b', '--format', '=', 'on') == ['onnx']
    assert complete('explora', 'export', 'a', 'b', '--format', '=')[0] == 'timm'
    for option in ('--model', '--model.help'):
        assert complete('explora', 'fit', option, 'ExploraDi') == ['ExploraDinoTask']
    name = 'ImageFolderDataModule'
    assert complete('explora', 'validate', '--data', 'Image') == [name]
    assert 'Curves' in complete('explora', 'fit', '--trainer.callbacks', '')


def test_arguments_of_classes(complete):
    assert '--model.rank' in complete('explora', 'fit', '--model.ra')
    assert '--data.root' in complete('explora', 'fit', '--data.ro')


def test_files_are_left_to_bash(complete):
    assert complete('explora', 'merge', '') == []
