"""Completion of the `explora` command by bash."""

import contextlib
import io
import re
import warnings

from torchgeo_explora.cli import TRAINING, main
from torchgeo_explora.cli.commands import COMMANDS

# The words are fixed when the script is made: asking Python at each key takes seconds.
_SCRIPT = """\
# Completion of the command explora for bash, made by `explora completion`.
_explora() {
    local command=${COMP_WORDS[1]} word=${COMP_WORDS[COMP_CWORD]} words
    local before=${COMP_WORDS[COMP_CWORD-1]}
    # In --option=value bash treats the equals sign as a separate word.
    [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD-2]}
    [[ $word == = ]] && word=
    case $command in TRAINING) command=fit;; esac
    case "$COMP_CWORD $command $before" in
        '1 '*) words='COMMANDS';;
VALUES
        *) [[ $word == -* ]] && case $command in
OPTIONS
        esac;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o bashdefault -o default -F _explora explora"""
# As the help lists them: `  -c CONFIG, --config CONFIG`, `--format {timm,onnx}`.
_OPTION = re.compile(r'^  (?:-\w[^,]*, )?(--[\w.]+)', re.MULTILINE)
_VALUES = re.compile(r'(--[\w.]+) \{([\w,-]+)\}')


def bash_script() -> str:
    """Return a bash script that completes commands, options, values and class names.

    The words are those of the command's own help. All training commands have those of
    `fit`.
    """
    classes = _classes()
    helps = {each.__name__: _help(each.__name__, '--help') for each in COMMANDS}
    helps['fit'] = '\n'.join(
        [
            _help('fit', '--help'),
            *(
                _help('fit', f'{option}.help', name)
                for option in ('--model', '--data')
                for name in classes[option]
            ),
        ]
    )
    values = {
        f'{command} {option}': words.replace(',', ' ')
        for command, text in helps.items()
        for option, words in _VALUES.findall(text)
    }
    for option, names in classes.items():
        values[f'fit {option}'] = values[f'fit {option}.help'] = ' '.join(names)
    options = {
        command: ' '.join(sorted({*_OPTION.findall(text)}))
        for command, text in helps.items()
    }
    cases = [f"        *' {name}') words='{words}';;" for name, words in values.items()]
    rest = [f"            {name}) words='{words}';;" for name, words in options.items()]
    script = _SCRIPT.replace('COMMANDS', ' '.join({**options, **TRAINING}))
    script = script.replace('TRAINING', '|'.join(TRAINING))
    script = script.replace('VALUES', '\n'.join(cases))
    return script.replace('OPTIONS', '\n'.join(rest))


def _classes() -> dict[str, list[str]]:
    """Return the short names of the classes that an option can name."""
    from lightning.pytorch import Callback
    from torchgeo.datamodules import BaseDataModule
    from torchgeo.tasks import BaseTask

    from torchgeo_explora import callbacks, datamodules, tasks

    found = {}
    for option, module, base in (
        ('--trainer.callbacks', callbacks, Callback),
        ('--model', tasks, BaseTask),
        ('--data', datamodules, BaseDataModule),
    ):
        kinds = {name: getattr(module, name) for name in sorted(module.__all__)}
        found[option] = [
            name
            for name, kind in kinds.items()
            if isinstance(kind, type) and issubclass(kind, base)
        ]
    return found


def _help(*arguments: str) -> str:
    """Return what the command prints for help."""
    text = io.StringIO()
    with (
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
        warnings.catch_warnings(),
    ):
        # Lightning warns about arguments that are not those of the process.
        warnings.simplefilter('ignore')
        main(arguments)
    return text.getvalue()
