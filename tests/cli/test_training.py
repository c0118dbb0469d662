"""TorchGeo's commands under the name of `explora`."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from torch._utils import ExceptionWrapper

from torchgeo_explora.cli import main, training
from torchgeo_explora.tasks.run.refusal import refusal

pytestmark = [pytest.mark.cli, pytest.mark.filterwarnings('ignore')]
SIZES = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}


def run(*arguments):
    main([str(argument) for argument in arguments])


def test_fit_knows_short_names(tmp_path):
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3))
        Image.fromarray(pixels.astype('uint8')).save(tmp_path / f'{number}.png')
    config = {
        'trainer': {
            'accelerator': 'cpu',
            'max_steps': 1,
            'logger': False,
            'default_root_dir': str(tmp_path / 'run'),
            'callbacks': [{'class_path': 'Curves'}],
        },
        'model': {
            'class_path': 'ExploraMAETask',
            'init_args': {
                'model': 'vit_tiny_patch16_224',
                'weights': None,
                'image_size': 32,
                'model_args': SIZES,
                'objective': {
                    'decoder_dim': 16,
                    'decoder_depth': 1,
                    'decoder_heads': 2,
                },
            },
        },
        'data': {
            'class_path': 'ImageFolderDataModule',
            'init_args': {'root': str(tmp_path), 'batch_size': 4},
        },
    }
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    run('fit', '--config', tmp_path / 'config.yaml')
    assert [*(tmp_path / 'run').rglob('delta.safetensors')]


def test_help_says_how_to_see_the_arguments_of_a_class(capsys):
    with pytest.raises(SystemExit, match='0'):
        run('fit', '--help')
    text = capsys.readouterr().out
    assert '--trainer.max_steps' in text
    end = text.partition('Classes of torchgeo_explora')[2]
    assert 'explora fit --model.help ExploraDinoTask' in end
    for name in ('ExploraMAETask', 'ImageFolderDataModule', 'OnlineKNN'):
        assert name in end
    for option, name in (
        ('--model.help', 'ExploraDinoTask'),
        ('--data.help', 'ImageFolderDataModule'),
        ('--trainer.callbacks.help', 'Curves'),
    ):
        with pytest.raises(SystemExit, match='0'):
            run('fit', option, name)
        assert f'torchgeo_explora.{name}' in capsys.readouterr().out.replace(
            'callbacks.', ''
        )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config', 'none.yaml'], "--config: File does not exist: '.*none.yaml'"),
        (['--model', 'NoSuchTask'], '--model: Expected .*NoSuchTask'),
        (['--model=ExploraDinoTask', '--model.rnk=3'], "--model: Option 'rnk' is not"),
        (['--model=ExploraDinoTask', '--model.rank=x'], '--model.rank: Expected .*int'),
        (['--trainer.max_stepz=3'], 'unrecognized arguments: --trainer.max_stepz'),
        ([], '.*arguments are required: fit.data, fit.model'),
    ],
)
def test_wrong_argument_is_told_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        run('fit', *arguments)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    expected = rf'explora fit: {message}.*; see `explora fit --help`'
    assert re.fullmatch(expected, line), line


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model: {', r'.*bad\.yaml: while parsing .* line 2, column 1'),
        ('hello', r'.*bad\.yaml: Unexpected config: hello'),
        ('model: "\\e[2J"', r'--model: .*\\x1b\[2J'),
        (
            'model: {class_path: ExploraDinoTask, init_args: -1}',
            '--model: has a value of another form than expected .*',
        ),
        ('trainer: {max_steps: x}', "--trainer.max_steps: Expected a <class 'int'>.*"),
    ],
)
def test_wrong_configuration_is_told_in_one_line(text, message, tmp_path, capsys):
    """F36: the file or the argument is named, and a terminal does not obey it."""
    (tmp_path / 'bad.yaml').write_text(text)
    with pytest.raises(SystemExit) as error:
        run('fit', '--config', tmp_path / 'bad.yaml')
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf'explora fit: {message}; see `explora fit --help`', line)
    assert line.isprintable()


@pytest.mark.parametrize('value', ['-1', 'null', '[]'])
def test_trainer_that_is_no_options_is_refused(value, tmp_path):
    """F36: Lightning would end in a `TypeError`."""
    text = f'trainer: {value}\nmodel: ExploraDinoTask\ndata: ImageFolderDataModule'
    (tmp_path / 'bad.yaml').write_text(f'{text}\n')
    with pytest.raises(SystemExit) as error:
        run('fit', '--config', tmp_path / 'bad.yaml')
    assert re.match(r'explora fit: \*trainer\* is .*expected options', str(error.value))


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('--model.views=-1', r'\*model.views\* is -1, expected options'),
        ('--model.objective=[1]', r'\*model.objective\* is \[1\], expected options'),
        ('--model.rank=-1', r'\*rank\* is -1: give a number 0 or more'),
        ('--data.batch_size=-1', r'\*batch_size\* is -1: give a number above 0'),
        ('--data.num_workers=-1', r'\*num_workers\* is -1: give a number 0 or more'),
        ('--trainer.devices=x', r'\*trainer\* is refused by Lightning: .*devices'),
        ('--seed_everything=-1', r'\*seed_everything\* is refused by Lightning'),
        ('--ckpt_path=none.ckpt', r'\*ckpt_path\* none.ckpt does not exist'),
    ],
)
def test_values_that_the_parser_lets_pass_are_refused(option, message, tmp_path):
    """F36: each would end in a traceback of a library."""
    image = Image.new('RGB', (32, 32), (1, 2, 3))
    image.save(tmp_path / 'a.png')
    name, _, value = option.removeprefix('--').partition('=')
    config = {
        'trainer': {'accelerator': 'cpu', 'max_steps': 1, 'logger': False},
        'model': {
            'class_path': 'ExploraDinoTask',
            'init_args': {
                'model': 'vit_tiny_patch16_224',
                'weights': None,
                'image_size': 32,
                'model_args': SIZES,
            },
        },
        'data': {
            'class_path': 'ImageFolderDataModule',
            'init_args': {'root': str(tmp_path), 'batch_size': 1},
        },
    }
    config['trainer']['default_root_dir'] = str(tmp_path)
    part, _, key = name.partition('.')
    place = config
    if key:
        place = config[part].get('init_args', config[part])
    place[key or part] = yaml.safe_load(value)
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as error:
        run('fit', '--config', tmp_path / 'config.yaml')
    assert re.match(f'explora fit: {message}', str(error.value))


def test_what_the_package_refuses_is_told_in_one_sentence(tmp_path, monkeypatch):
    arguments = ['fit', '--model=ExploraDinoTask', '--data=ImageFolderDataModule']
    arguments += [f'--data.root={tmp_path}', '--model.weights=nothing.pth']
    with pytest.raises(
        SystemExit, match=r'^explora fit: weights file nothing.pth does'
    ):
        run(*arguments)
    monkeypatch.setenv('JSONARGPARSE_DEBUG', 'true')
    with pytest.raises(FileNotFoundError, match=r'nothing.pth does not exist'):
        run(*arguments)


@pytest.mark.parametrize('name', ['quickstrt', 3])
def test_refusal_in_a_worker_of_a_loader_is_told_without_its_traceback(name):
    try:
        training.shipped_path(name)
    except (ValueError, TypeError):
        wrapped = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises((ValueError, TypeError), match='Original Traceback') as caught:
        wrapped.reraise()
    said = refusal(caught.value)
    if name == 3:
        # Raised by Python's own library: not a refusal.
        assert said is None
    else:
        assert said.startswith('*--config* quickstrt is neither a file')
        assert said.endswith('quickstart')


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*_, **__):
        return int('many')

    monkeypatch.setattr('torchgeo_explora.models.checkpoints.read_file', fail)
    arguments = ['fit', '--model=ExploraDinoTask', '--data=ImageFolderDataModule']
    with pytest.raises(ValueError, match='invalid literal for int'):
        run(*arguments, '--data.root=.', '--model.weights=nothing.pth')


@pytest.mark.parametrize(
    ('command', 'config'),
    [
        ('torchgeo_explora.cli', {}),
        (
            'torchgeo.main',
            {
                'trainer': {
                    'callbacks': [{'class_path': 'torchgeo_explora.callbacks.Curves'}]
                }
            },
        ),
    ],
    ids=['explora', 'torchgeo'],
)
def test_stock_configuration_knows_models_and_weights(command, config, tmp_path):
    config = {
        'model': {
            'class_path': 'torchgeo.tasks.Classification',
            'init_args': {
                'model': 'explora_vit_base_patch14_224',
                'weights': 'ExploraWeights.FMOW_RGB_BASE',
                'num_classes': 3,
            },
        },
        'data': {
            'class_path': 'torchgeo.datamodules.EuroSATDataModule',
            'dict_kwargs': {'root': str(tmp_path)},
        },
        **config,
    }
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    code = f'from {command} import main; main()'
    # No network, and nothing in the cache: the error tells what was looked for.
    blocked = {'TORCH_HOME': str(tmp_path), 'https_proxy': 'http://127.0.0.1:9'}
    done = subprocess.run(
        [sys.executable, '-c', code, 'fit', '--config', tmp_path / 'config.yaml'],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **blocked},
    )
    assert done.returncode, done.stdout
    file = 'explora_dinov2_vit_base_fmow_rgb_encoder_only.pth'
    assert f'put it at {tmp_path}/hub/checkpoints/{file}' in done.stderr, done.stderr
    # No traceback where the command is ours.
    assert ('Traceback' in done.stderr) == (command == 'torchgeo.main')
