"""Two contenders in processes of their own, which take turns.

A machine whose cores are shared is faster now and slower later: what stands beside each
other in time can be compared, and the rounds show how much it varies.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import Clock

READY = 'ready'


class TurnClock(Clock):
    """A clock that says before each turn that it is ready, and waits for a line.

    A turn is two steps, of which the second one counts: memory that the machine took
    back in the meantime comes again in the first.
    """

    waits = True

    def start(self) -> None:
        """Begin a step, when it is this process's turn."""
        if self.waits:
            print(READY, flush=True)
            sys.stdin.readline()
        else:
            self.steps.pop()
        self.waits = not self.waits
        super().start()


class Runner:
    """A contender in a process; it has come to its first step.

    Args:
        arguments: Of `contenders.py`.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start it, and wait until it is ready or has finished."""
        script = Path(__file__).with_name('contenders.py')
        self.name = arguments[0]
        self.said = tempfile.TemporaryFile('w+')  # noqa: SIM115 - closed by `stop`
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )
        self.found: dict[str, Any] | None = None
        self._listen()

    def turn(self) -> None:
        """Let it take its turn, if it has one left, and wait for its end."""
        if self.found is None:
            assert self.process.stdin is not None
            print(file=self.process.stdin, flush=True)
            self._listen()

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.communicate()
        self.said.close()

    def _listen(self) -> None:
        """Read lines until it is ready again or has a result.

        Raises:
            RuntimeError: If it fails, with what it said last.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == READY:
                return
            if line.startswith('{'):
                self.found = json.loads(line)
                return
        self.process.wait()
        self.said.seek(0)
        raise RuntimeError(f'{self.name} failed: {self.said.read()[-2000:]}')


def alone(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a contender without steps found."""
    runner = Runner([name, *arguments])
    runner.stop()
    return runner.found or {}


def race(names: tuple[str, str], arguments: Sequence[str]) -> dict[str, Any]:
    """Return what two contenders found, one turn of each after the other.

    Args:
        names: Ours and the yardstick.
        arguments: Further ones of `contenders.py`.

    Returns:
        'ours', 'theirs' and `compare` of them.
    """
    runners: list[Runner] = []
    try:
        for name in names:
            # One after the other: the first one waits while the second gets ready.
            runners.append(Runner([name, *arguments]))
        while any(runner.found is None for runner in runners):
            for runner in runners:
                runner.turn()
    finally:
        for runner in runners:
            runner.stop()
    ours, theirs = (runner.found or {} for runner in runners)
    return {'ours': ours, 'theirs': theirs} | compare(ours, theirs)


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return how many times as fast ours is, and its share of the memory.

    Returns:
        'speed', where there are steps the median of 'rounds', and 'memory' where both
        measured it.
    """
    found: dict[str, Any] = {}
    if 'rounds' in ours:
        pairs = zip(ours['rounds'], theirs['rounds'], strict=True)
        found['rounds'] = [round(their / our, 3) for our, their in pairs]
        found['speed'] = round(statistics.median(found['rounds']), 3)
    else:
        speed = ours['images_per_second'] / theirs['images_per_second']
        found['speed'] = round(speed, 3)
    memory = [side.get('peak_memory_gib') for side in (ours, theirs)]
    if all(memory):
        found['memory'] = round(memory[0] / memory[1], 3)
    return found
