"""Malformed deltas, checkpoints and files of weights."""

import hashlib
import io
import json
import os
import pickle
import zipfile

import numpy as np
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import load_file, save

from tests.attack.guard import Case, command, cuts, flips, safetensors, some
from tests.attack.whole import MODEL, SIZES, header_of, train
from torchgeo_explora.export.rebuild import reopen
from torchgeo_explora.models import ViT
from torchgeo_explora.models.formats.fingerprint import fingerprint

#: Values that no field expects, and that do harm where they are believed.
VALUES = (
    *(None, True, -1, 0, 1.5, 10**30, float('nan'), '', 'x' * 100_000, '(.*)*x'),
    *('\x1b[2J', [], {}, [[1]], {'a': {}}, 'canary_module', 'canary/canary.txt'),
    *('http://127.0.0.1:{port}/x', '../../etc/passwd'),
)
HOSTILE = (
    *('weights', 'checkpoint_path', 'pretrained', 'pretrained_cfg'),
    *('pretrained_cfg_overlay', 'cache_dir', 'scriptable', '__class__', 'self'),
    *('pretrained_strict', 'features_only', 'out_indices', 'block_fn', 'embed_layer'),
)
HOSTILE_OF_ADAPTER = (
    *('megatron_core', 'megatron_config', 'base_model_name_or_path', 'auto_mapping'),
    *('loftq_config', 'runtime_config', 'corda_config', 'eva_config', 'use_qalora'),
    *('trainable_token_indices', 'layer_replication', 'init_lora_weights'),
)


def _of_port(value):
    port = os.environ.get('ATTACK_PORT', '0')
    return value.replace('{port}', port) if isinstance(value, str) else value


class Exploit:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ('touch canary/ran',)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def contents():
    """Yield (name, bytes) that are a file of weights of no kind."""
    random = np.random.default_rng(0).bytes(5000)
    tensor = {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}
    yield from {
        'empty': b'',
        'one byte': b'\x80',
        'random': random,
        'text': b'hello\n' * 50,
        'HTML': b'<html>404</html>',
        'a list in JSON': b'[1, 2]',
        'a pointer of Git LFS': b'version https://git-lfs.github.com/spec/v1\nsize 9',
        'a header of 4 EiB': (2**62).to_bytes(8, 'little') + b'{}',
        'a header that is no JSON': safetensors(b'{' * 40),
        'a nested header': safetensors(b'[' * 50_000),
        'a header of a list': safetensors([]),
        'an empty header': safetensors({}),
        'a tensor without a type': safetensors({'a': {'shape': [1]}}),
        'a tensor beyond the end': safetensors({'a': tensor}),
        'a tensor of 4 EiB': safetensors(
            {'a': {**tensor, 'shape': [2**60], 'data_offsets': [0, 2**62]}}
        ),
        'overlapping tensors': safetensors({'a': tensor, 'b': tensor}, bytes(16)),
        'negative offsets': safetensors({'a': {**tensor, 'data_offsets': [-16, 0]}}),
        'an archive': archive(a='b'),
        'an archive without tensors': archive(
            **{'a/data.pkl': b'\x80', 'a/version': '3'}
        ),
        'a pickled list': pickle.dumps([1]),
        'a pickled command': pickle.dumps(Exploit()),
        'a saved list': saved([1]),
        'a saved number': saved(3),
        'a saved dictionary': saved({'a': 1}),
        'a saved command': saved({'state_dict': {'a': Exploit()}}),
        'saved text': saved({'state_dict': 'x', 'hyper_parameters': []}),
        'a saved empty state': saved({'state_dict': {}, 'hyper_parameters': {}}),
        'saved numbers': saved({'state_dict': {1: 2}, 'hyper_parameters': 3}),
        'a state of text': saved({'state_dict': {'a': 'text'}}),
    }.items()


def _put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


# Deltas -------------------------------------------------------------------------------


def sealed(metadata, tensors):
    """Return the bytes of a delta with seals that fit: what an attacker can do."""
    metadata = {k: v for k, v in metadata.items() if k != 'metadata_sha256'}
    metadata['delta'] = fingerprint(tensors)
    text = json.dumps(metadata, sort_keys=True)
    metadata['metadata_sha256'] = hashlib.sha256(text.encode()).hexdigest()
    return save(tensors, metadata)


def _read_delta(base):
    def read(folder):
        path, refused = folder / 'bad.safetensors', None
        try:
            command('info', path)
        except SystemExit as error:
            refused = error
        command('merge', path, folder / 'merged.safetensors', '--weights', base)
        if refused is not None:
            raise RuntimeError(f'merge accepts what info refuses: {refused}')
        return folder

    return read


def _fits(folder):
    """Return whether what was merged is finite, complete, and says what it is of."""
    merged = reopen(folder / 'merged.safetensors')
    with torch.no_grad():
        found = merged.eval()(torch.zeros(1, 3, *merged.image_size)).cls
    return bool(found.isfinite().all())


def deltas(whole):
    """Yield malformed deltas."""
    content = (whole / 'delta.safetensors').read_bytes()
    header, data = header_of(content)
    metadata, tensors = header['__metadata__'], tensors_of(content)
    read = _read_delta(whole / 'base.safetensors')

    def case(name, content, right=lambda _: False):
        # What reads may be changed consistently: then the result must be consistent.
        write = _put('bad.safetensors', content)
        return Case('delta files', name, write, read, right, ('bad.safetensors',))

    for name, found in (*contents(), *cuts(content, 16), *flips(content, 40)):
        yield case(name, found)
    texts = ('', 'null', '[]', '-1', '9' * 30, '\x1b[2J')
    for number, (key, old) in enumerate(metadata.items()):
        for new in (*some(texts, number, 3), old[: len(old) // 2]):
            changed = {**header, '__metadata__': {**metadata, key: new}}
            unsealed = new == old
            if not unsealed:
                yield case(f'{key} is {new[:9]!r}', safetensors(changed, data))
        kept = {k: v for k, v in metadata.items() if k != key}
        yield case(f'no {key}', safetensors({**header, '__metadata__': kept}, data))
    for part in ('arguments', 'adaptation'):
        known = json.loads(metadata[part])
        hostile = HOSTILE if part == 'arguments' else ('hook', 'class_path')
        for number, key in enumerate((*known, *hostile)):
            values = some(VALUES, number, 9) if key in known else VALUES[-2:]
            for value in values:
                yield _sealed_case(case, metadata, tensors, part, known, key, value)
        for value in ('', '[]', '[' * 100_000, 'NaN', '{"a": ' * 5000, '{'):
            changed = sealed({**metadata, part: value}, tensors)
            yield case(f'{part} are {value[:9]!r}, sealed', changed)
    known = json.loads(metadata['adaptation'])
    for number, key in enumerate((*known['adapter'], *HOSTILE_OF_ADAPTER)):
        for value in some(VALUES, number, 2):
            adapter = {**known['adapter'], key: value}
            yield _sealed_case(
                case,
                metadata,
                tensors,
                'adaptation',
                known,
                'adapter',
                adapter,
                f'adapter option {key} is {str(value)[:20]!r}, sealed',
            )
    for value in (float('nan'), float('inf'), float('-inf')):
        changed = {name: each.clone() for name, each in tensors.items()}
        next(iter(changed.values())).view(-1)[0] = value
        yield case(f'a value of {value}, sealed', sealed(metadata, changed))
    first = next(iter(tensors))
    for kind in (
        torch.int64,
        torch.bool,
        torch.float16,
        torch.float64,
        torch.complex64,
    ):
        changed = {**tensors, first: tensors[first].to(kind)}
        yield case(f'a tensor of {kind}, sealed', sealed(metadata, changed))
    for name, changed in {
        'a tensor less': {k: v for k, v in tensors.items() if k != first},
        'a tensor more': {**tensors, '\x1b[2J': torch.zeros(1)},
        'a tensor of another shape': {**tensors, first: torch.zeros(3)},
        'no tensors': {},
    }.items():
        yield case(f'{name}, sealed', sealed(metadata, changed))
    note = sealed({**metadata, 'note': '\x1b]0;x\x07', '\x9b1m': '\u202e'}, tensors)
    yield case('control characters in notes, sealed', note, _fits)
    for name in ('os.system', 'canary_module.ViT', 'torch.nn.Linear', 'x' * 10_000):
        changed = sealed({**metadata, 'backbone': name}, tensors)
        yield case(f'backbone is {name[:20]}, sealed', changed)
    for version in ('0', '2', '99', '-1', '1.x', '', '1e3', '1' * 5000):
        changed = sealed({**metadata, 'format_version': version}, tensors)
        yield case(f'version is {version[:9]!r}, sealed', changed)


def _sealed_case(case, metadata, tensors, part, known, key, value, name=None):
    value = _of_port(value)
    changed = json.dumps({**known, key: value})
    right = _fits  # a value that fits describes another, equally good delta
    name = name or f'{part}: {key} is {str(value)[:20]!r}, sealed'
    return case(name, sealed({**metadata, part: changed}, tensors), right)


# Weights ------------------------------------------------------------------------------


def weights(whole):
    """Yield malformed files of weights."""
    state = load_file(whole / 'base.safetensors')
    plain = (whole / 'base.safetensors').read_bytes()
    first = next(iter(state))
    kinds = dict(contents())
    kinds |= {
        'a tensor of another shape': saved({**state, first: torch.zeros(3, 3)}),
        'a tensor of integers': saved({**state, first: state[first].long()}),
        'a tensor of complex numbers': saved({**state, first: state[first] * 1j}),
        'a sparse tensor': saved({**state, first: state[first].to_sparse()}),
        'a tensor of NaN': saved({**state, first: state[first] * float('nan')}),
        'names of numbers': saved(dict(enumerate(state.values()))),
        'other names': saved({f'x.{k}': v for k, v in state.items()}),
        'half of the tensors': saved(dict([*state.items()][::2])),
        'tensors in a list': saved([*state.values()]),
        'a delta': (whole / 'delta.safetensors').read_bytes(),
        'a checkpoint of pre-training': (whole / 'run/last.ckpt').read_bytes(),
    }
    for suffix in ('.safetensors', '.pth', '.bin', '.ckpt'):
        other = plain if suffix == '.safetensors' else (whole / 'base.pth').read_bytes()
        header = 8 + int.from_bytes(other[:8], 'little')
        for name, content in (*kinds.items(), *cuts(other, 6)):
            yield _weights_case(name, suffix, content, state)
        if suffix == '.safetensors':
            for name, content in flips(other, 12, 0, 8 + header // 20):
                yield _weights_case(name, suffix, content, state)


def _weights_case(name, suffix, content, state):
    def right(backbone):
        # What a wrapper of modules puts before all names is taken off.
        found = backbone.canonical_state_dict()
        return all(torch.equal(found[name], state[name]) for name in state)

    def read(folder):
        return ViT(MODEL, folder / f'bad{suffix}', image_size=32, **SIZES)

    write = _put(f'bad{suffix}', content)
    names = (f'bad{suffix}',)
    return Case('files of weights', f'{name}{suffix}', write, read, right, names)


# Checkpoints --------------------------------------------------------------------------


def checkpoints(whole):
    """Yield malformed checkpoints of pre-training, to resume from."""
    content = (whole / 'run/2.ckpt').read_bytes()
    good = torch.load(io.BytesIO(content), weights_only=True)

    def read(folder):
        path = folder / 'bad.ckpt'
        command('info', path)
        trainer = train(folder / 'run', whole / 'images', 3, checkpoint=path)
        return trainer

    def right(trainer):
        found = trainer.lightning_module.state_dict()
        return trainer.global_step == 3 and all(
            torch.equal(found[name], tensor) for name, tensor in expected.items()
        )

    expected = torch.load(whole / 'run/last.ckpt', weights_only=True)['state_dict']

    def case(name, content):
        write = _put('bad.ckpt', content)
        # There is only one.
        names = ('bad.ckpt', 'the checkpoint')
        return Case('checkpoints', name, write, read, right, names)

    for name, found in (*contents(), *cuts(content, 12), *flips(content, 40)):
        yield case(name, found)
    values = (None, 'x', [1], {'a': 1}, 10**30, {})
    for number, key in enumerate(good):
        yield case(f'no {key}', saved({k: v for k, v in good.items() if k != key}))
        for value in some(values, number, 4):
            yield case(f'{key} is {value!r}', saved({**good, key: value}))
    first = next(iter(good['state_dict']))
    tensor = good['state_dict'][first]
    for name, changed in {
        'another shape': torch.zeros(2, 2),
        'NaN': tensor * float('nan'),
        'integers': tensor.long(),
        'no tensor': 'x',
    }.items():
        state = {**good['state_dict'], first: changed}
        yield case(f'a tensor of {name}', saved({**good, 'state_dict': state}))
    for name, changed in {
        'a class': {
            'model': {
                'class_path': 'os.system',
                'init_args': {'command': 'touch canary/ran'},
            }
        },
        'a module': {'model': {'class_path': 'canary_module.ViT'}},
        'an instantiator': {'_instantiator': 'canary_module.run'},
        'another file': {'model_args': {'checkpoint_path': 'canary/canary.txt'}},
        'a command': {'x': Exploit()},
    }.items():
        hyper = {**good['hyper_parameters'], **changed}
        yield case(
            f'hyper-parameters with {name}', saved({**good, 'hyper_parameters': hyper})
        )
