"""Malformed files of each kind: `explora` tells them in one sentence."""

import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.test_commands import MODEL, SIZES
from torchgeo_explora.adapt import Adaptation, adapt, lora, save_delta
from torchgeo_explora.cli import main
from torchgeo_explora.datasets import ImageFolder, prepare
from torchgeo_explora.models import ViT

pytestmark = pytest.mark.filterwarnings('ignore')
RANDOM = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A base, a delta and a folder of prepared images, all whole."""
    folder = tmp_path_factory.mktemp('good')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ViT(MODEL, image_size=28, **SIZES)
    state = {k: v.contiguous() for k, v in base.canonical_state_dict().items()}
    save_file(state, folder / 'base.safetensors')
    backbone = ViT(MODEL, folder / 'base.safetensors', 3, 28, **SIZES)
    adapt(backbone, Adaptation(cls_token=False, adapter=lora(2)))
    save_delta(backbone, folder / 'delta.safetensors')
    images = folder / 'images'
    images.mkdir()
    for number in range(4):
        Image.new('RGB', (16, 16), (number, 0, 0)).save(images / f'{number}.png')
    prepare(ImageFolder(images), folder / 'prepared')
    return folder


def _safetensors(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + data


def _zip(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def _saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _contents(delta):
    """Return bytes of files that nobody wrote so, by a name for each."""
    size = int.from_bytes(delta[:8], 'little')
    header = json.loads(delta[8 : 8 + size])
    metadata, data = header['__metadata__'], delta[8 + size :]
    kinds = {
        'empty': b'',
        'one byte': b'\x80',
        'random': RANDOM,
        'text': b'hello\n' * 50,
        'html': b'<html>404</html>',
        'json list': b'[1, 2]',
        'git lfs': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9',
        'header too long': (2**62).to_bytes(8, 'little') + b'{}',
        'header is no json': _safetensors(b'{' * 40),
        'header is a list': _safetensors([]),
        'header is empty': _safetensors({}),
        'tensor without type': _safetensors({'a': {'shape': [1]}}),
        'tensor beyond the end': _safetensors(
            {'a': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}}
        ),
        'zip': _zip(a='b'),
        'zip of a checkpoint': _zip(
            **{'archive/data.pkl': b'\x80', 'archive/version': '3'}
        ),
        'pickle of a list': pickle.dumps([1]),
        'saved list': _saved([1]),
        'saved dict': _saved({'a': 1}),
        'saved text': _saved({'state_dict': 'x', 'hyper_parameters': []}),
        'saved empty': _saved({'state_dict': {}, 'hyper_parameters': {}}),
        'saved numbers': _saved({'state_dict': {1: 2}, 'hyper_parameters': 3}),
        'cut in the header': delta[: size // 2],
        'cut in the data': delta[:-10],
    }
    for key, old in metadata.items():
        for new in (
            '',
            'null',
            '[]',
            '{"a": [1]}',
            '-1',
            '9' * 30,
            old[: len(old) // 2],
        ):
            changed = {**header, '__metadata__': {**metadata, key: new}}
            kinds[f'{key} is {new[:9]}'] = _safetensors(changed, data)
        kept = {k: v for k, v in metadata.items() if k != key}
        kinds[f'no {key}'] = _safetensors({**header, '__metadata__': kept}, data)
    return kinds


def _told(arguments, capsys):
    """Run a command; return what it said when it gave up, or None."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        said = f'{end.code}\n{capsys.readouterr().err}'
        assert 'Traceback' not in said
        return said
    return None


@pytest.mark.parametrize('suffix', ['safetensors', 'ckpt'])
@pytest.mark.parametrize('command', ['info', 'merge', 'export', 'diff', 'average'])
def test_malformed_files_are_told_in_a_sentence(
    good, tmp_path, capsys, command, suffix
):
    delta = (good / 'delta.safetensors').read_bytes()
    bad, out = tmp_path / f'bad.{suffix}', tmp_path / 'out.safetensors'
    base = good / 'base.safetensors'
    words = {
        'info': [bad],
        'merge': [bad, out, '--weights', base],
        'export': [bad, out, '--weights', base],
        'diff': [bad, good / 'delta.safetensors'],
        'average': [bad, good / 'delta.safetensors', '--output', out],
    }[command]
    surprises = []
    for kind, content in _contents(delta).items():
        bad.write_bytes(content)
        said = _told([command, *words], capsys)
        if said and 'were not expected' in said:
            surprises.append(f'{kind}: {said}')
        elif said and said != '1\n':
            assert re.match(rf'explora {command}: .*', said), kind
            named = any(w in said for w in (bad.name, 'the other file', 'a state dict'))
            assert named, f'{kind}: {said}'
        if command not in ('info', 'diff'):
            assert said is not None or ' is ' in kind or 'no ' in kind, kind
    assert not surprises, '\n'.join(surprises)


def test_malformed_prepared_folders_are_told_in_a_sentence(good, tmp_path, capsys):
    for path in sorted((good / 'prepared').iterdir()):
        for kind, content in _contents(
            (good / 'delta.safetensors').read_bytes()
        ).items():
            if ' is ' in kind:
                continue
            folder = tmp_path / 'prepared'
            folder.mkdir(exist_ok=True)
            for other in (good / 'prepared').iterdir():
                (folder / other.name).write_bytes(other.read_bytes())
            (folder / path.name).write_bytes(content)
            said = _told(['verify', folder], capsys)
            assert said is not None, f'{path.name}: {kind}'
            assert 'were not expected' not in said, f'{path.name}: {kind}: {said}'


def test_malformed_images_are_told_in_a_sentence(good, tmp_path, capsys):
    png = (good / 'images' / '0.png').read_bytes()
    kinds = _contents((good / 'delta.safetensors').read_bytes())
    kinds = {k: v for k, v in kinds.items() if ' is ' not in k}
    kinds |= {'cut': png[:40], 'wrong size': png[:16] + b'\xff' * 8 + png[24:]}
    for suffix in ('png', 'jpg', 'tif'):
        for kind, content in kinds.items():
            folder = tmp_path / 'images'
            folder.mkdir(exist_ok=True)
            (folder / f'a.{suffix}').write_bytes(content)
            arguments = ['prepare', 'ImageFolder', tmp_path / 'out']
            said = _told([*arguments, f'--options.root={folder}'], capsys)
            (folder / f'a.{suffix}').unlink()
            assert said, f'{suffix}: {kind}'
            assert said.startswith('explora prepare: '), f'{suffix}: {kind}: {said}'
            assert 'were not expected' not in said, f'{suffix}: {kind}: {said}'


FIT = [
    'fit',
    '--model=ExploraMAETask',
    '--data=ImageFolderDataModule',
    '--model.weights=null',
]


@pytest.mark.cli
def test_malformed_configurations_and_checkpoints_of_fit(good, tmp_path, capsys):
    kinds = _contents((good / 'delta.safetensors').read_bytes())
    kinds = {k: v for k, v in kinds.items() if ' is ' not in k and 'no ' not in k}
    bad = tmp_path / 'bad.yaml'
    kinds |= {'unclosed': b'model: {', 'tabs': b'model:\n\t- 1', 'wrong': b'model: 3'}
    for kind, content in kinds.items():
        bad.write_bytes(content)
        said = _told(['fit', '--config', bad], capsys)
        assert said, kind
        assert 'explora fit: ' in said, f'{kind}: {said}'
    bad = tmp_path / 'bad.ckpt'
    for kind, content in kinds.items():
        if kind.startswith('saved'):
            continue
        bad.write_bytes(content)
        said = _told([*FIT, f'--data.root={good}', '--ckpt_path', bad], capsys)
        assert said, kind
        assert 'bad.ckpt cannot be read as a checkpoint' in said, f'{kind}: {said}'
