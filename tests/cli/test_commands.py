"""The commands on files."""

import inspect

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import register_model
from torch.testing import assert_close
from transformers import AutoModel

from torchgeo_explora import export as exports
from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    load_delta,
    lora,
    merged,
    save_delta,
)
from torchgeo_explora.cli import main
from torchgeo_explora.cli.commands import COMMANDS
from torchgeo_explora.datasets import Prepared
from torchgeo_explora.models import ViT

SIZES = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
MODEL = 'vit_small_patch14_dinov2'


@register_model
def explora_tiny_command(pretrained=False, **options):
    """What `--model` names."""
    return timm.create_model(MODEL, **{'img_size': 28, **SIZES, **options})


@pytest.fixture
def files(tmp_path):
    """A base and two deltas of it, as files."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ViT(MODEL, image_size=28, **SIZES)
        state = {k: v.contiguous() for k, v in base.canonical_state_dict().items()}
        save_file(state, tmp_path / 'base.safetensors')
        for number in (1, 2):
            backbone = ViT(MODEL, tmp_path / 'base.safetensors', 3, 28, **SIZES)
            adapt(backbone, Adaptation(cls_token=False, adapter=lora(2)))
            for parameter in backbone.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.1 * number * torch.randn_like(parameter)
            save_delta(backbone, tmp_path / f'{number}.safetensors', {'steps': '5'})
    return tmp_path


@pytest.fixture
def expected(files):
    """The backbone with the first delta."""
    base = ViT(MODEL, files / 'base.safetensors', image_size=28, **SIZES)
    return load_delta(base, files / '1.safetensors').eval()


def run(*arguments):
    main([str(argument) for argument in arguments])


def test_help_names_every_command_and_argument(capsys):
    commands = {
        'info': ['files'],
        'merge': ['delta', 'output', '--weights'],
        'export': ['file', 'output', '--format', '--weights', '--model', 'onnx'],
        'diff': ['first', 'second'],
        'average': ['deltas', '--output', '--shares'],
        'push': ['delta', 'repo', '--base', '--data', '--scores', '--licence'],
        'pull': ['repo', 'output', '--revision'],
        'prepare': ['dataset', 'output', '--options', '--workers', '--drop'],
        'verify': ['folders'],
        'embed': ['source', 'output', '--model', '--weights', '--delta', '--share'],
        'search': ['file', 'query', '--k', '--output'],
        'map': ['source', 'output', '--components', '--checkpoint'],
        'report': ['run', '--weights'],
        'compare': ['runs', '--output'],
        'completion': [],
    }
    with pytest.raises(SystemExit, match='0'):
        run('--help')
    text = capsys.readouterr().out
    assert all(name in text for name in [*commands, *('fit', 'validate', 'test')])
    for name, arguments in commands.items():
        with pytest.raises(SystemExit, match='0'):
            run(name, '--help')
        text = capsys.readouterr().out
        assert all(argument in text for argument in arguments), name


def test_info_of_files_and_folders(files, capsys):
    run('info', files / '1.safetensors', files / 'base.safetensors')
    text = capsys.readouterr().out
    assert 'delta [2]-r2 of vit_small_patch14_dinov2' in text
    assert 'tensors of a backbone and 0 others' in text
    (files / 'empty').mkdir()
    with pytest.raises(SystemExit, match='empty has no safetensors file: name files'):
        run('info', files / 'empty')
    run('info', files)
    assert capsys.readouterr().out.count('safetensors: ') == 3


@torch.no_grad()
def test_delta_over_a_delta_is_merged_in_turn(files, expected):
    base, first = files / 'base.safetensors', files / 'first.safetensors'
    run('merge', files / '1.safetensors', first, '--weights', base)
    second = adapt(merged(expected), Adaptation((), adapter=lora(1)))
    second.blocks[0].attn.q.lora_B['default'].weight.fill_(0.5)
    save_delta(second, files / 'over.safetensors')
    run(
        'merge',
        files / 'over.safetensors',
        files / 'both.safetensors',
        '--weights',
        first,
    )
    found = ViT(MODEL, files / 'both.safetensors', image_size=28, **SIZES).eval()
    image = torch.randn(1, 3, 28, 28)
    assert_close(found(image), second.eval()(image))


@torch.no_grad()
def test_merge_and_export(files, expected, capsys):
    delta, base = files / '1.safetensors', files / 'base.safetensors'
    run('merge', delta, files / 'merged.safetensors', '--weights', base)
    merged = ViT(MODEL, files / 'merged.safetensors', image_size=28, **SIZES).eval()
    image = torch.randn(2, 3, 28, 28)
    assert_close(merged(image), expected(image))

    given = ['--weights', base]
    run('export', delta, files / 'hf', '--format', 'transformers', *given)
    run('export', files / 'merged.safetensors', files / 'h2', '--format=transformers')
    for folder in ('hf', 'h2'):
        model = AutoModel.from_pretrained(files / folder).eval()
        found = model(image).last_hidden_state[:, 0]
        assert_close(found, expected(image).cls, rtol=0, atol=1e-5)
    run('export', delta, files / 'backbone.pth', '--format', 'dinov2', *given)
    again = ViT(MODEL, files / 'backbone.pth', image_size=28, **SIZES).eval()
    assert_close(again(image), expected(image))
    run('export', delta, files / 'peft', '--format', 'peft', *given)
    assert (files / 'peft' / 'adapter_config.json').exists()
    capsys.readouterr()
    named = ['--model', 'explora_tiny_command']
    run('export', delta, files / 'x.ckpt', '--format', 'torchgeo', *given, *named)
    assert 'model: explora_tiny_command, weights: ' in capsys.readouterr().out
    form = 'torchgeo-segmentation'
    run('export', delta, files / 'y.ckpt', '--format', form, *given, *named)
    assert 'backbone: tu-explora_tiny_command' in capsys.readouterr().out


def test_diff_says_whether_files_differ(files, capsys):
    one, two = files / '1.safetensors', files / '2.safetensors'
    run('diff', one, one)
    assert capsys.readouterr().out == 'no difference\n'
    with pytest.raises(SystemExit) as error:
        run('diff', one, two)
    assert error.value.code == 1
    assert 'norm.weight: relative distance' in capsys.readouterr().out


def test_average_writes_a_delta(files):
    one, two = files / '1.safetensors', files / '2.safetensors'
    output = files / 'mean.safetensors'
    run('average', one, two, '--output', output, '--shares', '[0.25, 0.75]')
    a, b, mean = (load_file(file)['norm.weight'] for file in (one, two, output))
    assert_close(mean, 0.25 * a + 0.75 * b)


def test_push_and_pull_pass_on_what_they_are_given(files, monkeypatch, capsys):
    calls = []

    def push(*arguments):
        calls.append(arguments)
        return 'https://hub.example/user/name'

    monkeypatch.setattr(exports, 'push_to_hub', push)
    delta = str(files / '1.safetensors')
    options = ['--base', 'timm/base', '--data', 'mine', '--scores', '{knn: 0.8}']
    run('push', delta, 'user/name', *options, '--licence', 'mit', '--public', 'true')
    expected = (delta, 'user/name', 'timm/base', 'mine', {'knn': 0.8}, 'mit', False)
    assert calls == [expected]
    assert capsys.readouterr().out == 'https://hub.example/user/name\n'

    monkeypatch.setattr(exports, 'from_hub', lambda repo, revision: files / delta)
    run('pull', 'user/name', files / 'pulled.safetensors')
    assert (files / 'pulled.safetensors').read_bytes() == (files / delta).read_bytes()


def test_prepare_and_verify(tmp_path, capsys):
    for number in range(5):
        file = tmp_path / 'raw/train' / 'ab'[number % 2] / f'{number}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(file)
    out = tmp_path / 'out/train'
    options = [f'--options.root={tmp_path / "raw"}', '--options.size=16']
    options += [
        '--options.bands=[3,1,2]',
        '--samples_per_shard=2',
        '--encoding=integer',
    ]
    run('prepare', 'ImageFolder', out, *options)
    assert capsys.readouterr().out == f'wrote {out}: 5 samples\n'
    prepared = Prepared(tmp_path / 'out', 'train')
    # Class a has the images 0, 2 and 4.
    levels = [int(sample['image'][0, 0, 0]) for sample in prepared]
    assert levels == [0, 80, 160, 40, 120]
    assert prepared[0]['image'].shape == (3, 16, 16)
    run('verify', out)
    assert 'every byte is as it was written' in capsys.readouterr().out
    shard = bytearray((out / 'shard-000001.tar').read_bytes())
    shard[700] ^= 1
    (out / 'shard-000001.tar').write_bytes(shard)
    with pytest.raises(SystemExit) as error:
        run('verify', out)
    assert error.value.code == 1
    assert 'shard-000001.tar has changed' in capsys.readouterr().out


def test_what_cannot_be_prepared_can_be_left_out(tmp_path, monkeypatch, capsys):
    """The sentence says how, and saying it does it."""
    (tmp_path / 'arrays_of_numpy.py').write_text(
        'import numpy, torch\n'
        'class Arrays:\n'
        '    def __len__(self):\n'
        '        return 3\n'
        '    def __getitem__(self, index):\n'
        "        return {'image': torch.ones(3, 8, 8), 'x': numpy.zeros(3)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = ['prepare', 'arrays_of_numpy.Arrays', tmp_path / 'out']
    with pytest.raises(SystemExit) as error:
        run(*given)
    sentence = str(error.value)
    assert sentence.startswith("explora prepare: 'x' of the sample is a ndarray")
    advice = sentence.partition(' or ')[2].partition(' on the')[0].split()[-1]
    assert advice == '--drop+=x'
    run(*given, advice)
    assert capsys.readouterr().out.endswith('3 samples\n')


@pytest.mark.parametrize(
    'command',
    [each for each in COMMANDS if 'output' in inspect.signature(each).parameters],
)
def test_no_command_writes_to_another_machine(command, tmp_path, monkeypatch):
    """They wrote into a local folder named like the address."""
    monkeypatch.chdir(tmp_path)
    words = ['x' for name in COMMANDS[command] if name != 'output']
    for name, given in inspect.signature(command).parameters.items():
        if given.default is given.empty and name not in COMMANDS[command]:
            words += [f'--{name}', 'x']
    words = [*words, '--output'] if 'output' not in COMMANDS[command] else words
    with pytest.raises(SystemExit, match=r'\*output\* s3://bucket/a is on another'):
        run(command.__name__, *words, 's3://bucket/a')
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['prepare', 'Nothing', 'x'], r'\*dataset\* Nothing is not a class'),
        (['prepare', 'FMoWRGB', 'x', '--options.sze=3'], 'FMoWRGB: .*options.sze'),
        (
            ['prepare', 'FMoWRGB', 'x', '--options.root=no', '--options.size=null'],
            'no fMoW image found',
        ),
        (['prepare', 'FMoWRGB', 'x', '--options.size=wide'], 'FMoWRGB: .*size'),
        (['verify', 'no'], 'prepare a data set into it first'),
        (['info', 'nothing.safetensors'], 'explora info: .*does not exist'),
        (['merge', '1.safetensors', 'x', '--weights', '2.safetensors'], 'not a whole'),
        (['export', 'base.safetensors', 'x'], 'does not say which backbone it is for'),
        (
            ['export', 'run.ckpt', 'x'],
            'not a checkpoint of an ExploraClassif',
        ),
        (['average', '1.safetensors', '--output', 'x', '--shares', '[2]'], 'sum to 1'),
    ],
)
def test_failure_is_one_sentence(files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    torch.save({'explora': {}, 'state_dict': {}}, 'run.ckpt')
    with pytest.raises(SystemExit, match=message):
        run(*arguments)
    assert not (files / 'x').exists()


def test_unknown_format_is_refused_with_the_known_ones(files, capsys):
    with pytest.raises(SystemExit, match='2'):
        run('export', files / '1.safetensors', files / 'x', '--format', 'tflite')
    assert 'torchgeo-segmentation' in capsys.readouterr().err
