"""TorchGeo's command, with this package's names and short errors."""

import gc
import inspect
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

# Importing TorchGeo takes seconds. The garbage collector would add a sixth to them, and
# two seconds at the end for the same objects, which are never garbage.
gc.disable()
import torchgeo.main  # noqa: E402
from jsonargparse import Namespace  # noqa: E402
from lightning.pytorch import Trainer  # noqa: E402
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI  # noqa: E402

import torchgeo_explora  # noqa: E402
from torchgeo_explora import callbacks, datamodules, tasks  # noqa: E402
from torchgeo_explora.cli.commands import wants_traceback  # noqa: E402
from torchgeo_explora.tasks.run.refusal import Refused, chain, refusal  # noqa: E402
from torchgeo_explora.terminal import escaped  # noqa: E402

gc.freeze()
gc.enable()

_HELP = """
Classes of torchgeo_explora are known by their short names, and list their arguments:

  explora {command} --model.help ExploraDinoTask
  explora {command} --data.help ImageFolderDataModule
  explora {command} --trainer.callbacks.help Curves

tasks: {tasks}
data modules: {datamodules}
callbacks: {callbacks}
"""

# What Python says about a value that the parser takes for another kind of thing.
_OF_PYTHON = re.compile('has no attribute|unhashable type|is not (iterable|subscript)')
#: The configurations: in a checkout a link to the folder of the same name.
CONFIGS = Path(torchgeo_explora.__file__).parent / 'configs'


def run(arguments: Sequence[str]) -> None:
    """Run TorchGeo's command.

    *--config* also takes the name of a shipped configuration, whose `configs/...` paths
    are found wherever the command runs. Errors of this package and of the parser are
    reported in one sentence. With the environment variable JSONARGPARSE_DEBUG=true, the
    traceback is shown too.

    Args:
        arguments: The arguments; the first is the name of the command.

    Raises:
        SystemExit: With what went wrong, or with a code.
    """
    torchgeo_explora.register()
    host: Any = torchgeo.main
    stock, host.LightningCLI = host.LightningCLI, _CLI
    try:
        host.main([*arguments])
    except ArgumentError as error:
        if wants_traceback():
            raise
        name = f'explora {arguments[0]}'
        wrong = escaped(_of_parser(error, arguments))
        print(f'{name}: {wrong}; see `{name} --help`', file=sys.stderr)
        sys.exit(2)
    # A loss that is not finite is an ArithmeticError.
    except (
        *(ArithmeticError, ImportError, OSError, RuntimeError, TypeError),
        ValueError,
    ) as error:
        sentence = next(filter(None, map(refusal, chain(error))), None)
        if sentence is None or wants_traceback():
            raise
        sys.exit(f'explora {arguments[0]}: {escaped(sentence)}')
    except Refused as refused:
        if wants_traceback():
            raise refused.__cause__ or refused from None
        sys.exit(f'explora {arguments[0]}: {escaped(str(refused))}')
    except SystemExit:
        if {'-h', '--help'} & {*arguments}:
            names = {
                module.__name__.rpartition('.')[2]: ', '.join(_selectable(module))
                for module in (tasks, datamodules, callbacks)
            }
            print(_HELP.format(command=arguments[0], **names))
        raise
    finally:
        host.LightningCLI = stock


class _CLI(LightningCLI):
    """Lightning's command line, which knows the configurations of this package.

    Its parser raises instead of printing its usage.
    """

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(**kwargs, exit_on_error=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        words = _with_shipped(args)
        try:
            self.config = parser.parse_args(words)
        except ArgumentError:
            raise
        except Exception as error:
            said = f'{type(error).__name__}: {error}'
            raise ValueError(
                f'{" ".join(words[1:])} cannot be read ({said}): *--config* takes a'
                ' YAML file'
            ) from error
        self._check_groups()
        key = f'{self.config.subcommand}.model.init_args.weights'
        weights = self.config.get(key)
        if isinstance(weights, str) and not os.path.exists(weights):
            shipped = CONFIGS.parent / weights
            if weights.startswith('configs/') and shipped.is_file():
                self.config[key] = str(shipped)

    def _check_groups(self) -> None:
        """Refuse other values where options belong: the parser lets them pass."""
        config = self.config[self.config.subcommand]
        groups = {'trainer': config.trainer}
        for part in ('model', 'data'):
            given = config[part].get('init_args', Namespace())
            kind = resolve_name(config[part].class_path)
            for name, parameter in inspect.signature(kind).parameters.items():
                if is_dataclass(parameter.default) and name in given:
                    groups[f'{part}.{name}'] = given[name]
        for name, value in groups.items():
            if not isinstance(value, Namespace):
                raise ValueError(
                    f'*{name}* is {value}, expected options, each with its name'
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        with _refused_by_lightning('trainer'):
            return super().instantiate_trainer(**kwargs)

    def _set_seed(self) -> None:
        with _refused_by_lightning('seed_everything'):
            super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        try:
            super()._parse_ckpt_path()
        except Exception as error:
            path = self.config[self.config.subcommand].ckpt_path
            raise ValueError(
                f'*--ckpt_path* {path} cannot be read as a checkpoint'
                f' ({type(error).__name__}): give a .ckpt file that a run has written'
            ) from error


@contextmanager
def _refused_by_lightning(name: str) -> Iterator[None]:
    """Name the argument whose value Lightning refuses."""
    try:
        yield
    except Exception as error:
        raise ValueError(f'*{name}* is refused by Lightning: {error}') from error


def _with_shipped(words: Sequence[str]) -> list[str]:
    """Return a command line with the paths of the configurations it names."""
    found = list(words)
    for number, option, value in _configurations(words):
        found[number] = f'{option}{shipped_path(value)}'
    return found


def _configurations(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the index of each word with the name of a configuration, and its parts."""
    for number, word in enumerate(words):
        option, equals, value = word.partition('=')
        if option not in ('--config', '-c'):
            continue
        if equals:
            yield number, f'{option}=', value
        elif number + 1 < len(words):
            yield number + 1, '', words[number + 1]


def shipped_path(name: str) -> str:
    """Return the file of a configuration: a file of the user's, or a shipped one.

    Args:
        name: A file, the name of a shipped configuration such as 'quickstart' or
            'pretrain/imagefolder_vit_large', or its path in the repository.

    Returns:
        The path of the shipped file if there is no other; else *name* unchanged.

    Raises:
        ValueError: If *name* can only be the name of a configuration, and there is
            none.
    """
    own = os.path.expanduser(name)
    if os.path.exists(own) and not os.path.isdir(own):
        return name
    path = CONFIGS / f'{name.removeprefix("configs/").removesuffix(".yaml")}.yaml'
    if path.is_file():
        return str(path)
    if not re.fullmatch(r'[\w/]+', name):
        return name
    names = [p.relative_to(CONFIGS).with_suffix('') for p in CONFIGS.glob('**/*.yaml')]
    raise ValueError(
        f'*--config* {name} is neither a file nor a configuration of this package:'
        f' {", ".join(sorted(map(str, names)))}'
    )


def _of_parser(error: ArgumentError, words: Sequence[str]) -> str:
    """Return which argument or file is wrong and why, without the types tried."""
    key = re.compile(r'Parser key "([\w.]+)":\s*')
    errors = [*chain(error)]
    # Each error in the chain names one part of the argument.
    found = dict.fromkeys(m[1] for m in map(key.match, map(str, errors)) if m)
    reason = ' '.join(key.sub('', str(errors[-1])).split())
    if _OF_PYTHON.search(reason):
        reason = f'has a value of another form than expected ({reason})'
    if found:
        return f'--{".".join(found)}: {reason}'
    files = ', '.join(value for _, _, value in _configurations(words))
    return f'{files}: {reason}' if files else reason


def _selectable(module: ModuleType) -> list[str]:
    """Return the public classes of a module, without functions and options."""
    found = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, kind in found.items()
        if isinstance(kind, type) and not is_dataclass(kind)
    ]
