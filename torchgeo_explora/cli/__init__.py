"""The `explora` command: work with files of deltas, weights and data, and train."""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser

from torchgeo_explora.cli.commands import COMMANDS, wants_traceback
from torchgeo_explora.paths import local_path
from torchgeo_explora.terminal import escaped
from torchgeo_explora.version import __version__

#: TorchGeo's own commands, and what they do.
TRAINING = {
    'fit': 'Train.',
    'validate': 'Evaluate on the validation split.',
    'test': 'Evaluate on the test split.',
    'predict': 'Write predictions or embeddings.',
}


def parser() -> ArgumentParser:
    """Return the parser of the command."""
    top = ArgumentParser(
        prog='explora',
        description='Work with files of deltas, weights and data, and run'
        " TorchGeo's command: fit, validate, test and predict know the classes of this"
        ' package by their short names.',
        epilog='`explora fit --help` lists the options of training, and `explora fit'
        ' --model.help ExploraDinoTask` the arguments of one task.',
        version=__version__,
    )
    top.add_argument(
        '--import',
        type=str,
        metavar='MODULE',
        help='A module of your own that defines a backbone which a file names; it is'
        ' also looked for in the working directory.',
    )
    commands = top.add_subcommands(dest='command')
    for function, positional in COMMANDS.items():
        documentation = docstring_parser.parse(function.__doc__ or '')
        help_of = {each.arg_name: each.description for each in documentation.params}
        summary = documentation.short_description
        command = ArgumentParser(description=summary)
        for name in positional:
            several: dict[str, Any] = {'nargs': '+'} if name.endswith('s') else {}
            command.add_argument(name, type=str, help=help_of[name], **several)
        command.add_function_arguments(function, as_group=False, skip={*positional})
        commands.add_subcommand(function.__name__, command, help=summary)
    for name, summary in TRAINING.items():
        text = f"TorchGeo's `{name}`. {summary}"
        commands.add_subcommand(name, ArgumentParser(description=text), help=text)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Bad input is reported in one sentence. With the environment variable
    JSONARGPARSE_DEBUG=true, a traceback is shown instead.

    Args:
        arguments: The arguments; those of the process if None.

    Raises:
        SystemExit: With what went wrong in one sentence, or with a code.
    """
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    if given and given[0] in TRAINING:
        from torchgeo_explora.cli.training import run

        run(given)
        return
    # A point west of Greenwich starts with a minus, but is not an option.
    given = [f' {word}' if re.match(r'-[\d.]+,', word) else word for word in given]
    config = parser().parse_args(given)
    name = config.command
    function = next(each for each in COMMANDS if each.__name__ == name)
    try:
        if config['import']:
            sys.path.append(os.getcwd())
            import_module(config['import'])
        options = config[name].as_dict()
        # Some commands would write into a local folder named like the address.
        if 'output' in options:
            local_path('output', options['output'])
        code = function(**options)
    except Exception as error:
        if wants_traceback():
            raise
        said = str(error)
        if not isinstance(error, OSError | ValueError | RuntimeError | ImportError):
            said = (
                f'{type(error).__name__}: {said}. A file or an argument has'
                ' contents that were not expected; JSONARGPARSE_DEBUG=true shows where'
            )
        sys.exit(f'explora {name}: {escaped(said)}')
    if code:
        sys.exit(code)
