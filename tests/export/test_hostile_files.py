"""Files that somebody made to do harm: one clear error, and nothing else happens.

Every test runs with sockets that fail and notes which files are opened (A1, A3, A5,
B10, B12).
"""

import hashlib
import json
import os
import socket
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from torchgeo_explora.adapt import (
    average_deltas,
    load_delta,
    read_delta,
    read_delta_metadata,
    save_delta,
)
from torchgeo_explora.export import export_timm, rebuild
from torchgeo_explora.export.info import compare_files, summarize_file
from torchgeo_explora.export.rebuild import outline, reopen
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraKNNTask

OPENED = []
NOTING = [False]


def note(event, arguments):
    if NOTING[0] and event == 'open' and isinstance(arguments[0], str):
        OPENED.append(arguments[0])
    if NOTING[0] and event in ('os.system', 'subprocess.Popen', 'os.exec'):
        raise AssertionError(f'{event}{arguments}')


sys.addaudithook(note)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Let nothing reach the network or run a command; note the files opened."""

    def refuse(*_, **__):
        raise AssertionError('a socket was opened')

    monkeypatch.setattr(socket, 'socket', refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)
    OPENED.clear()
    NOTING[0] = True
    yield
    NOTING[0] = False


@pytest.fixture
def path(trained, tmp_path):
    path = tmp_path / 'delta.safetensors'
    save_delta(trained('dinov2'), path, {'note': 'first'})
    OPENED.clear()
    return path


def header_of(path):
    with safe_open(path, 'pt') as file:
        return file.metadata()


def rewrite(path, tensors=None, sealed=True, without=(), **changes):
    """Write the file again, with a seal that fits: what an attacker can do."""
    header = {**header_of(path), **changes}
    tensors = load_file(path) if tensors is None else tensors
    for name in without:
        header.pop(name)
    if sealed:
        header.pop('metadata_sha256', None)
        text = json.dumps(header, sort_keys=True)
        header['metadata_sha256'] = hashlib.sha256(text.encode()).hexdigest()
    save_file(tensors, path, header)


def change(path, key, **changes):
    values = json.loads(header_of(path)[key])
    rewrite(path, **{key: json.dumps({**values, **changes})})


def change_adapter(path, **changes):
    values = json.loads(header_of(path)['adaptation'])
    change(path, 'adaptation', adapter={**values['adapter'], **changes})


def all_refuse(path, base, match):
    """Every way to read the file gives the same clear error."""
    for look in (summarize_file, lambda file: rebuild(file, base)):
        with pytest.raises(ValueError, match=match) as error:
            look(path)
        assert str(error.value).isprintable()
        assert str(path) in str(error.value)


@pytest.fixture
def base(make, tmp_path):
    path = tmp_path / 'base.safetensors'
    export_timm(make('dinov2'), path)
    return path


@pytest.mark.parametrize(
    ('key', 'changes', 'match'),
    [
        ('arguments', {'weights': True}, r'may not set \*weights\*'),
        ('arguments', {'weights': 'ViTSmall16_Weights.X'}, r'may not set \*weights\*'),
        ('arguments', {'weights': '/etc/passwd'}, r'may not set \*weights\*'),
        ('arguments', {'checkpoint_path': '/etc/passwd'}, 'may not set'),
        ('arguments', {'pretrained_cfg': {'file': '/etc/passwd'}}, 'may not set'),
        ('arguments', {'depth': 20_000}, r'\*depth\* is 20000, expected'),
        ('arguments', {'image_size': [16_000, 16_000]}, r'cannot be built|expected at'),
        ('arguments', {'model': 'local-dir:/etc'}, r'\*model\* is'),
        ('arguments', {'model': '\x1b]0;title\x07'}, r'\*model\* is \\x1b'),
        (
            'adaptation',
            {'adapter': {'peft_type': 'LORA', 'megatron_core': 'os'}},
            'mega',
        ),
        ('adaptation', {'adapter': {'peft_type': 'NEW'}}, 'upgrade peft'),
        ('adaptation', {'unfreeze': ['\x1b[2J']}, r'\*unfreeze\* .*\\x1b'),
        ('adaptation', {'modules': 'all'}, r'\*modules\*'),
        ('adaptation', {'hook': 'os.system'}, 'an adaptation has no hook'),
    ],
)
def test_metadata_that_do_harm_are_refused(path, base, key, changes, match):
    change(path, key, **changes)
    all_refuse(path, base, match)


@pytest.mark.parametrize(
    'changes', [{'target_modules': '(.*)*x'}, {'r': 10**9}, {'lora_alpha': 'x'}]
)
def test_adapters_that_do_harm_are_refused(path, base, changes):
    change_adapter(path, **changes)
    all_refuse(path, base, f'adapter option {next(iter(changes))}')


@pytest.mark.parametrize('name', ['os.system', 'a.b.\x1b[31mred', ''])
def test_backbone_of_another_name_is_not_imported(path, base, name):
    rewrite(path, backbone=name)
    with pytest.raises(ValueError, match='no backbone of this name') as error:
        rebuild(path, base)
    assert str(error.value).isprintable()
    assert '\x1b' not in summarize_file(path)


@pytest.mark.parametrize('key', ['arguments', 'adaptation'])
@pytest.mark.parametrize(
    'text',
    ['[' * 100_000, '{"a": ' * 5000, '1' * 10_000, 'NaN', 'null', '"x"', '', '{'],
)
def test_text_that_is_no_dictionary_is_refused(path, base, key, text):
    rewrite(path, **{key: text})
    all_refuse(path, base, f'not those that were saved .wrong {key}')


def test_endless_metadata_are_not_parsed(path, base):
    rewrite(path, arguments=json.dumps({'model': 'x' * 2_000_000}))
    all_refuse(path, base, 'wrong arguments')


@pytest.mark.parametrize('version', ['0', '-1', '1.x', '', '1e3', '\u0661', '1' * 5000])
def test_versions_that_are_none_are_refused(path, base, version):
    rewrite(path, format_version=version)
    all_refuse(path, base, 'wrong format_version')


def test_seal_cannot_be_left_out(path, base):
    """Neither by its key nor by the name of the file (B10)."""
    values = json.loads(header_of(path)['adaptation'])
    values['adapter']['lora_alpha'] = 100
    changed = json.dumps(values)
    rewrite(path, sealed=False, without=['metadata_sha256'], adaptation=changed)
    all_refuse(path, base, 'wrong metadata_sha256')
    other = path.with_suffix('.pt')
    path.rename(other)
    with pytest.raises(ValueError, match='wrong metadata_sha256'):
        load_delta(ViT(**json.loads(header_of(other)['arguments'])), other)
    with pytest.raises(ValueError, match=r'delta.pt is cut short or damaged'):
        summarize_file(other)


@pytest.mark.parametrize('name', ['delta', 'adaptation', 'metadata_sha256', 'base'])
def test_delta_that_lost_metadata_is_not_taken_for_weights(path, name):
    rewrite(path, sealed=False, without=[name])
    with pytest.raises(ValueError, match=f'wrong .*{name}|differs'):
        summarize_file(path)


def test_newer_minor_version_is_read_with_a_note(path, base):
    """What it added is left out and named; what may do harm is still refused (A3)."""
    values = json.loads(header_of(path)['adaptation'])
    values['adapter']['tomorrow'] = 3
    changes = {
        'adaptation': json.dumps({**values, 'later': [1]}),
        'arguments': json.dumps(
            {**json.loads(header_of(path)['arguments']), 'bells': True}
        ),
    }
    plain = summarize_file(path)
    rewrite(path, format_version='1.3', **changes)
    with pytest.warns(UserWarning, match='newer version; .*: bells, later, tomorrow'):
        text = summarize_file(path)
    assert text.splitlines()[0] == plain.splitlines()[0]
    with pytest.warns(UserWarning, match='bells'):
        rebuild(path, base)
    rewrite(path, format_version='1', **changes)
    all_refuse(path, base, 'bells|later|tomorrow')
    rewrite(path, format_version='1.3', arguments=json.dumps({'weights': True}))
    all_refuse(path, base, r'may not set \*weights\*')


def test_control_characters_are_shown_as_escapes(path):
    """A terminal must not obey a file (A5)."""
    rewrite(path, note='\x1b[2J\x1b]0;pwned\x07\r\nsize: 1', **{'\x9b31m': '\u202e'})
    text = summarize_file(path)
    assert r'\x1b[2J\x1b]0;pwned\x07\r\nsize: 1' in text
    assert r'\x9b31m: \u202e' in text
    assert all(line.isprintable() for line in text.splitlines())
    other = path.with_name('other.safetensors')
    save_file({'\x1b[2J': torch.ones(1)}, other)
    last = path.with_name('last.safetensors')
    save_file({'a': torch.ones(1)}, last, {'x': '\x1b[2J'})
    assert all(line.isprintable() for line in compare_files(other, last))


def test_reading_a_delta_opens_that_file_only(path):
    summarize_file(path), outline(path)
    OPENED.clear()
    summarize_file(path), outline(path), read_delta_metadata(path), read_delta(path)
    found = {os.path.realpath(name) for name in OPENED if not name.endswith('.pyc')}
    assert found <= {str(path)}


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_values_that_are_not_finite_are_refused(path, base, value):
    """Also where their checksum is right (B12)."""
    from torchgeo_explora.models.formats.fingerprint import fingerprint

    tensors = load_file(path)
    tensors['norm.bias'][0] = value
    rewrite(path, tensors, delta=fingerprint(tensors))
    all_refuse(path, base, r'norm.bias that are not finite')
    with pytest.raises(ValueError, match='not finite'):
        average_deltas([path, path], path.with_name('mean.safetensors'))


@pytest.mark.parametrize('kind', [torch.int64, torch.bool, torch.uint8, torch.float16])
def test_tensors_of_another_type_are_refused(path, base, kind):
    from torchgeo_explora.models.formats.fingerprint import fingerprint

    tensors = load_file(path)
    tensors['norm.bias'] = tensors['norm.bias'].to(kind)
    rewrite(path, tensors, delta=fingerprint(tensors))
    with pytest.raises(ValueError, match=r'norm.bias as torch\.'):
        rebuild(path, base)
    with pytest.raises(ValueError, match=r'norm.bias as torch\.'):
        average_deltas([path, path], path.with_name('mean.safetensors'))


@pytest.mark.parametrize('shares', [[float('nan'), 1], [float('inf'), 0], [1, 1]])
def test_shares_of_a_mean_are_numbers(path, shares):
    with pytest.raises(ValueError, match='shares of a mean must sum to 1'):
        average_deltas([path, path], path.with_name('mean.safetensors'), shares)


def test_mean_of_other_shapes_is_refused(path):
    from torchgeo_explora.models.formats.fingerprint import fingerprint

    other = path.with_name('other.safetensors')
    tensors = load_file(path)
    other.write_bytes(path.read_bytes())
    tensors['norm.bias'] = tensors['norm.bias'][:1]
    rewrite(other, tensors, delta=fingerprint(tensors))
    with pytest.raises(ValueError, match=r'norm.bias of shape \(1,\)'):
        average_deltas([path, other], path.with_name('mean.safetensors'))


def test_equal_backbones_give_equal_files(trained, tmp_path):
    """One delta, one file (B12)."""
    notes = {name: name for name in 'zyxabc'}
    files = [tmp_path / f'{index}.safetensors' for index in range(3)]
    for file in files:
        save_delta(trained('dinov2'), file, notes)
        notes = dict(reversed(notes.items()))
    contents = {file.read_bytes() for file in files}
    assert len(contents) == 1
    assert read_delta_metadata(files[0])['z'] == 'z'
    means = [tmp_path / f'mean{index}.safetensors' for index in range(2)]
    for file in means:
        average_deltas(files, file)
    assert means[0].read_bytes() == means[1].read_bytes()


def test_exported_file_is_checked_before_it_is_built(make, tmp_path):
    """`reopen` trusts its file no more than `rebuild` does (A1, A3, B10)."""
    path = tmp_path / 'plain.safetensors'
    export_timm(make('dinov2'), path)
    header, tensors = header_of(path), load_file(path)
    arguments = json.loads(header['arguments'])
    for changes, match in (
        ({'backbone': 'os.system'}, 'no backbone of this name'),
        ({'arguments': '{'}, 'its arguments are a NoneType'),
        ({'arguments': json.dumps({**arguments, 'weights': True})}, 'may not set'),
        ({'arguments': json.dumps({**arguments, 'depth': 10**5})}, 'expected a whole'),
        ({'mean': '["\x1b", 1, 1]'}, 'has mean .*x1b'),
    ):
        save_file(tensors, path, {**header, **changes})
        with pytest.raises(ValueError, match=match) as error:
            reopen(path)
        assert str(error.value).isprintable()
    tensors['norm.bias'] += 1
    save_file(tensors, path, header)
    with pytest.raises(ValueError, match='not those that were saved'):
        reopen(path)


class Exploit:
    def __reduce__(self):
        return (os.system, ('touch hacked',))


@pytest.mark.parametrize(
    'changes',
    [
        {
            'model': {
                'class_path': 'os.system',
                'init_args': {'command': 'touch hacked'},
            }
        },
        {'model_args': {'checkpoint_path': 'evil.pth'}},
        {'model_args': {'pretrained_cfg': {'file': 'evil.pth'}}},
        {'_instantiator': 'os.system'},
    ],
)
def test_checkpoint_that_names_code_runs_none(changes, tmp_path, monkeypatch):
    """`load_from_checkpoint` builds what hyper-parameters name (A1)."""
    monkeypatch.chdir(tmp_path)
    hyper = {'model': 'vit_tiny_patch16_224', 'weights': None, **changes}
    content = {
        'hyper_parameters': hyper,
        'state_dict': {},
        'explora': {'base': 'x'},
        'pytorch-lightning_version': '2.6.6',
        'epoch': 0,
        'global_step': 0,
    }
    torch.save(content, 'evil.ckpt')
    before = {*tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r'model|chosen|instantiator'):
        ExploraKNNTask.load_from_checkpoint('evil.ckpt', weights_only=True)
    assert all(line.isprintable() for line in summarize_file('evil.ckpt').splitlines())
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    'changes',
    [
        {'explora': 3},
        {'explora': {}},
        {'state_dict': 3},
        {'state_dict': {'a': 'text'}},
        {'hyper_parameters': [1]},
        {'hyper_parameters': {'x': Exploit()}},
    ],
)
def test_malformed_checkpoints_are_refused(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {'explora': {'base': 'x'}, 'state_dict': {'a': torch.ones(1)}, **changes}
    torch.save(content, 'evil.ckpt')
    with pytest.raises(ValueError, match=r'evil\.ckpt'):
        summarize_file('evil.ckpt')
    assert [path.name for path in tmp_path.iterdir()] == ['evil.ckpt']


def test_checkpoint_is_described_without_escapes(tmp_path):
    hyper = {'_class_path': 'a.\x1b[2J', 'model': {'class_path': '\x1b[2J'}}
    content = {'explora': {'base': '\x1b[2J'}, 'state_dict': {}, 'global_step': '\x07'}
    torch.save({**content, 'hyper_parameters': hyper}, tmp_path / 'evil.ckpt')
    text = summarize_file(tmp_path / 'evil.ckpt')
    assert all(line.isprintable() for line in text.splitlines())
