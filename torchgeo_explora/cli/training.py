"""TorchGeo's command with the names of this package known, and short errors."""

import gc
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

# Importing TorchGeo takes seconds. The garbage collector would add a sixth to them, and
# two seconds at the end for the same objects, which are never garbage.
gc.disable()
import torchgeo.main  # noqa: E402
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI  # noqa: E402

import torchgeo_explora  # noqa: E402
from torchgeo_explora import callbacks, datamodules, tasks  # noqa: E402

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


def run(given: Sequence[str], arguments: list[str] | None) -> None:
    """Run TorchGeo's command.

    What this package refuses, and what the parser does, is told in one sentence. With
    the environment variable JSONARGPARSE_DEBUG=true, the traceback comes too.

    Args:
        given: The arguments, of which the first is the name of the command.
        arguments: The same, or None where they are those of the process: Lightning
            wants these unnamed.

    Raises:
        SystemExit: With what went wrong, or with a code.
    """
    torchgeo_explora.register()
    host: Any = torchgeo.main
    if os.environ.get('JSONARGPARSE_DEBUG', '').lower() == 'true':
        host.main(arguments)
        return
    stock, host.LightningCLI = host.LightningCLI, _CLI
    try:
        host.main(arguments)
    except ArgumentError as error:
        name = f'explora {given[0]}'
        print(f'{name}: {_of_parser(error)}; see `{name} --help`', file=sys.stderr)
        sys.exit(2)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        refusal = next(filter(_is_ours, _chain(error)), None)
        if refusal is None:
            raise
        sys.exit(f'explora {given[0]}: {refusal}')
    except SystemExit:
        if {'-h', '--help'} & {*given}:
            names = {
                module.__name__.rpartition('.')[2]: ', '.join(module.__all__)
                for module in (tasks, datamodules, callbacks)
            }
            print(_HELP.format(command=given[0], **names))
        raise
    finally:
        host.LightningCLI = stock


class _CLI(LightningCLI):
    """Lightning's command line, whose parser raises instead of printing its usage."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(**kwargs, exit_on_error=False)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from, and so on."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def _is_ours(error: BaseException) -> bool:
    """Return whether a line of this package raised the error."""
    trace: TracebackType | None = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get('__name__', '')
    return bool(name.startswith('torchgeo_explora.'))


def _of_parser(error: ArgumentError) -> str:
    """Return which argument is wrong and why, without the types that were tried."""
    key = re.compile(r'Parser key "([\w.]+)":\s*')
    errors = [*_chain(error)]
    # Each part of the argument's name is told by another of the errors.
    found = dict.fromkeys(m[1] for m in map(key.match, map(str, errors)) if m)
    reason = ' '.join(key.sub('', str(errors[-1])).split())
    return f'--{".".join(found)}: {reason}' if found else reason
