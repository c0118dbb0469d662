"""Malformed configurations of `explora fit`."""

import copy
import json

import yaml

from tests.attack.guard import Case, command, some
from tests.attack.weights import contents
from tests.attack.whole import TASK


def configurations(whole):
    """Yield malformed configurations of `explora fit`."""
    good = {
        'trainer': {
            'max_steps': 1,
            'accelerator': 'cpu',
            'logger': False,
            'enable_progress_bar': False,
        },
        'model': {
            'class_path': 'ExploraDinoTask',
            'init_args': copy.deepcopy(TASK),
        },
        'data': {
            'class_path': 'ImageFolderDataModule',
            'init_args': {'root': str(whole / 'images'), 'batch_size': 4},
        },
    }
    texts = {name: content for name, content in contents() if name != 'empty'}
    texts |= {
        'an open brace': b'model: {',
        'tabs': b'model:\n\t- 1',
        'a number': b'model: 3',
        'a command': b'model: !!python/object/apply:os.system ["touch canary/ran"]',
        'a module': b'model: !!python/name:canary_module.x',
        'an import': b'!!python/module:canary_module',
        'references': b'a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]',
        'two documents': b'a: 1\n---\nb: 2',
        'a key of a list': b'? [a]\n: 1',
        'binary': b'model: !!binary x',
        'Latin-1': b'model: \xe9',
        'a merge': b'<<: 3',
    }
    for name, content in texts.items():
        yield _config_case(name, content)
    paths = (
        'model',
        'model.class_path',
        'model.init_args',
        'model.init_args.rank',
        'data',
        'data.class_path',
        'data.init_args',
        'data.init_args.root',
        'trainer',
        'trainer.max_steps',
        'model.init_args.model',
        'model.init_args.image_size',
        'model.init_args.unfreeze',
        'model.init_args.views',
        'model.init_args.objective',
        'model.init_args.weights',
        'model.init_args.base_lr',
        'trainer.max_epochs',
        'trainer.callbacks',
        'trainer.devices',
        'trainer.precision',
        'trainer.default_root_dir',
        'seed_everything',
        'ckpt_path',
        'optimizer',
        'data.init_args.batch_size',
        'data.init_args.num_workers',
        'nothing',
        'model.init_args.nothing',
    )
    for number, path in enumerate(paths):
        # A class that a user names is imported, as it should be.
        for value in some(('\x1b[2J', -1, 'no_module.x', [[1]], {'a': 1}), number, 3):
            changed = json.loads(json.dumps(good))
            *above, last = path.split('.')
            place = changed
            for key in above:
                place = place[key]
            place[last] = value
            # Any name is one of a folder, and -1 says that only steps are counted.
            right = path == 'trainer.default_root_dir' and isinstance(value, str)
            right |= (path, value) == ('trainer.max_epochs', -1)
            text = yaml.safe_dump(changed).encode()
            yield _config_case(f'{path} is {value!r}', text, right)


def _config_case(name, content, right=False):
    def write(folder):
        (folder / 'bad.yaml').write_bytes(content)

    return Case(
        'configurations',
        name,
        write,
        lambda folder: command('fit', '--config', folder / 'bad.yaml'),
        lambda _: right,
        names=('bad.yaml',),
    )
