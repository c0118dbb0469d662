"""Show errors of this package as one sentence, whatever command is running."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from lightning.pytorch.core.mixins import hparams_mixin

import torchgeo_explora


class Refused(SystemExit):
    """Ends a command with one sentence; `__cause__` is the original error.

    The parser of Lightning's command takes every `Exception` of a constructor as a sign
    that the argument has another type, and prints all types and arguments.
    """


@contextmanager
def told_by_command() -> Iterator[None]:
    """Turn this package's errors into `Refused` if Lightning's command builds the task.

    Otherwise, and for errors of other packages, the error is left unchanged.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        said = refusal(error)
        # Lightning sets it while its command calls a constructor.
        given = getattr(hparams_mixin, '_given_hyperparameters', None)
        if said is None or given is None or given.get() is None:
            raise
        raise Refused(said) from error


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from, and so on."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def refusal(error: BaseException) -> str | None:
    """Return the message of an error if a line of this package raised it."""
    # An error from a worker of a data loader has the traceback in its message.
    trace = str(error).partition('Original Traceback (most recent call last):\n')[2]
    if frames := [*re.finditer(r'^  File "(.*)", line .*$', trace, re.MULTILINE)]:
        said = re.search(
            r'^[\w.]+: (.*)', trace[frames[-1].end() :], re.MULTILINE | re.DOTALL
        )
        ours = Path(frames[-1][1]).is_relative_to(
            Path(torchgeo_explora.__file__).parent
        )
        return said[1].strip() if said and ours else None
    last: TracebackType | None = error.__traceback__
    if last is None:
        return None
    while last.tb_next is not None:
        last = last.tb_next
    name = last.tb_frame.f_globals.get('__name__', '')
    return str(error) if name.startswith('torchgeo_explora.') else None
