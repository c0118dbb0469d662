"""One attack at a time in a forked child: limited, watched, and judged by its end.

The parent has imported everything and computes nothing, so that a fork is safe and
quick. A child that hangs, takes too much memory or crashes is an outcome like others.
"""

import contextlib
import ctypes
import io
import json
import os
import re
import resource
import selectors
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

#: What may become of an input, the good ends first.
ENDS = (
    'clear error',
    'accepted and right',
    'silently accepted',
    'traceback',
    'hang',
    'network',
    'code',
)
GOOD = ENDS[:2]

_CPU_SECONDS = 30
_WALL_SECONDS = 120
_MEMORY = 4 << 30
_OPENED = 0x20  # IN_OPEN of inotify
_PROCESSES = ('os.system', 'os.exec', 'os.posix_spawn', 'os.startfile')


class Case(NamedTuple):
    """A malformed input.

    `write` puts it into a folder, `read` reads it as a user would and raises what it
    says. If it returns, the input was accepted, and `right` tells of what it returned
    whether that is right; by default it never is. `names` are what a clear error may
    name: files or arguments. A case that talks to a server of its own is not watched.
    """

    kind: str
    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    right: Callable[[Any], bool] = lambda _: False
    names: tuple[str, ...] = ()
    watched: bool = True


class Harm:
    """Watches this process for the network, other processes and canaries."""

    def __init__(self, folder):
        self.found, self.on = [], False
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        place = folder / 'canary'
        place.mkdir()
        (place / 'canary.txt').write_text('a secret')
        (place / 'canary_module.py').write_text(f'open({str(place / "ran")!r}, "w")')
        sys.path.append(str(place))
        self.place, self.watch = place, None

    def start(self):
        """Look from now on, in the libraries in C too."""
        libc = ctypes.CDLL(None, use_errno=True)
        self.watch = libc.inotify_init1(os.O_NONBLOCK)
        for file in [*self.place.iterdir()]:
            libc.inotify_add_watch(self.watch, os.fsencode(file), _OPENED)
        self.on = True
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        """Note what Python is about to do."""
        if not self.on:
            return
        if event in ('socket.connect', 'socket.sendto'):
            if not isinstance(arguments[1], str | bytes):
                self.found.append(('network', f'{event} {arguments[1]}'))
        elif event == 'socket.getaddrinfo':
            self.found.append(('network', f'{event} {arguments[0]}'))
        elif event in _PROCESSES or event == 'subprocess.Popen':
            self.found.append(('code', f'{event} {str(arguments)[:200]}'))
        elif event == 'import' and arguments[0] == 'canary_module':
            self.found.append(('code', 'a module that a file names was imported'))

    def stop(self):
        """Return the worst that happened, or None."""
        self.on = False
        if (self.place / 'ran').exists():
            self.found.append(('code', 'a canary ran'))
        with contextlib.suppress(BlockingIOError):
            self.listener.accept()
            self.found.append(('network', 'a connection to the canary'))
        if self.watch is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self.watch, 4096)
                self.found.append(('code', 'another file was opened'))
        return min(self.found, default=None)


def run_cases(cases, jobs):
    """Yield (case, end, what was said), each in a child of its own.

    Args:
        cases: The cases.
        jobs: Children at a time.
    """
    waiting, running = iter(cases), {}
    with selectors.DefaultSelector() as selector:
        while True:
            while len(running) < jobs and (case := next(waiting, None)) is not None:
                reading, writing = os.pipe()
                folder = Path(tempfile.mkdtemp(prefix='attack'))
                child = os.fork()
                if not child:
                    os.close(reading)
                    _child(case, folder, writing)
                os.close(writing)
                selector.register(reading, selectors.EVENT_READ)
                limit = time.monotonic() + _WALL_SECONDS
                running[reading] = case, child, folder, limit
            if not running:
                return
            ended = {key.fd for key, _ in selector.select(1)}
            for reading, (case, child, folder, limit) in [*running.items()]:
                late = time.monotonic() > limit
                if reading not in ended and not late:
                    continue
                if late:
                    os.kill(child, signal.SIGKILL)
                with open(reading, 'rb', closefd=False) as file:
                    said = file.read()
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                selector.unregister(reading)
                os.close(reading)
                del running[reading]
                shutil.rmtree(folder, ignore_errors=True)
                if late or code == -signal.SIGXCPU:
                    yield case, 'hang', f'{_WALL_SECONDS} s'
                elif said:
                    yield case, *json.loads(said)
                else:
                    yield case, 'traceback', f'the process ended with code {code}'


def _child(case, folder, writing):
    """Run one case, tell what came of it, and end."""
    with open(os.devnull, 'w') as null:
        os.dup2(null.fileno(), 1), os.dup2(null.fileno(), 2)
    try:
        result = judge(case, folder)
    except BaseException:  # noqa: BLE001
        result = 'traceback', 'in the attack itself: ' + traceback.format_exc()[-1500:]
    with open(writing, 'w') as file:
        json.dump(result, file)
    os._exit(0)


def judge(case, folder):
    """Return (end, what was said) of a case."""
    os.chdir(folder)
    harm = Harm(folder)
    os.environ['ATTACK_PORT'] = str(harm.port)
    case.write(folder)
    _limit()
    warnings.simplefilter('ignore')
    if case.watched:
        harm.start()
    try:
        end, said = _outcome(case, folder)
    finally:
        worst = harm.stop() if case.watched else None
    return worst or (end, said)


def _limit():
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    memory = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    used = int(sum(os.times()[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + _CPU_SECONDS,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(case, folder):
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            result = case.read(folder)
    except SystemExit as error:
        said = f'{error.code}\n{shown.getvalue()}'
        if 'Traceback (most' in said or 'were not expected' in said:
            return 'traceback', said[-1000:]
        if error.code in (0, None):
            return 'silently accepted', 'the command ended with code 0'
    except Exception as error:  # noqa: BLE001
        said = refusal(error)
        if said is None:
            return 'traceback', traceback.format_exc()[-1500:]
    else:
        if not _shown_safely(shown.getvalue()):
            return 'silently accepted', 'a control character reached the terminal'
        if case.right(result):
            return 'accepted and right', ''
        return 'silently accepted', str(result)[:300]
    if not _shown_safely(said):
        return 'code', f'a control character reached the terminal: {said[:300]!r}'
    if not any(name in said for name in case.names) and not _ARGUMENT.search(said):
        return 'traceback', f'names neither a file nor an argument: {said[:600]}'
    return 'clear error', said.strip()[:300]


def _shown_safely(text):
    return text.replace('\n', ' ').replace('\t', ' ').isprintable()


_ARGUMENT = re.compile(r'\*-{0,2}[\w.]+\*|--[\w.]+')


def refusal(error):
    """Return the sentence of an error that a line of the package raised, else None."""
    kinds = ValueError | OSError | RuntimeError | ImportError | FloatingPointError
    if not isinstance(error, kinds) or isinstance(error, UnicodeError):
        return None
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    ours = last.tb_frame.f_globals.get('__name__', '').startswith('torchgeo_explora.')
    return str(error) if ours else None


def command(*words):
    """Run `explora`.

    Raises:
        SystemExit: With what it says, or a code that is not 0.
    """
    from torchgeo_explora.cli import main

    main([str(word) for word in words])


def flip(content, bit):
    """Return bytes with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def some(values, number, count):
    """Return *count* of the values, others for each number."""
    return [values[(number * count + i) % len(values)] for i in range(count)]


def cuts(content, count):
    """Yield (name, bytes) cut at *count* places, the beginning included."""
    for number in range(count):
        size = len(content) * number // count
        yield f'cut to {size} bytes', content[:size]


def flips(content, count, start=0, end=None):
    """Yield (name, bytes) with one bit changed, at *count* places."""
    end = len(content) if end is None else end
    for number in range(count):
        # Odd steps meet every bit of a byte.
        bit = (8 * start + (8 * (end - start) * number) // count) | (number % 8)
        bit = min(bit, 8 * end - 1)
        yield f'bit {bit} changed', flip(content, bit)


def safetensors(header, data=b''):
    """Return a safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data
