"""Attack the package, and write what came of it.

`python -m tests.attack` from the root of the repository writes
`benchmarks/results/attack.json` and the table of `docs/reliability.md`; with `--only`,
the results of some parts.
"""

import argparse
import contextlib
import gc
import importlib
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'

import torch

# All that children need is imported before the forks.
from tests.attack import (
    configurations,
    faults,
    guard,
    images,
    kills,
    page,
    prepared,
    scenes,
    tables,
    weights,
    whole,
)
from torchgeo_explora.cli import training  # noqa: F401
from torchgeo_explora.version import __version__

KINDS = {
    'delta files': weights.deltas,
    'checkpoints': weights.checkpoints,
    'files of weights': weights.weights,
    'images': images.images,
    'CSV tables and indices': tables.tables,
    'prepared data': prepared.prepared,
    'scenes and indices': scenes.scenes,
    'STAC items': scenes.items,
    'configurations': configurations.configurations,
}
KILLS = 46


def cpu_seconds():
    """Return what this process and its ended children have used."""
    return sum(os.times()[:4])


def malformed(kind, folder, jobs, verbose):
    """Return the number of each end of a kind of input, and all ends that are bad."""
    start, used, counts, bad = time.monotonic(), cpu_seconds(), Counter(), []
    for case, end, said in guard.run_cases(KINDS[kind](folder), jobs):
        counts[end] += 1
        if end not in guard.GOOD:
            bad.append({'input': case.name, 'end': end, 'said': said})
        if verbose or end not in guard.GOOD:
            print(f'{kind}: {case.name}: {end}: {said}', flush=True)
    took = f'{time.monotonic() - start:.0f} s, {cpu_seconds() - used:.0f} s of CPU'
    print(kind, dict(counts), took, flush=True)
    return {'ends': dict(sorted(counts.items())), 'bad': bad}


def injected(folder):
    """Return the outcome of each fault."""
    found = {}
    for what, outcome in faults.inject(folder):
        print(f'{what} {outcome}', flush=True)
        found[what] = outcome
    return found


def made_by():
    """Return the versions that results belong to."""
    return {
        'torchgeo-explora': __version__,
        'python': platform.python_version(),
        'torch': torch.__version__,
    }


def killed(folder):
    """Return the number of each outcome by signal."""
    counts = {}
    for moment, number, outcome in kills.kill_runs(folder, KILLS):
        print(f'{number} at moment {moment}: {outcome}', flush=True)
        row = counts.setdefault(number, Counter())
        row[outcome] += 1
    return {number: dict(row) for number, row in sorted(counts.items())}


def import_all(names):
    """Import what children need, which share it."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


def main():
    parts = [*KINDS, 'kills', 'faults']
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', nargs='*', choices=parts, default=parts)
    parser.add_argument('--jobs', type=int, default=2, help='processes at a time')
    parser.add_argument('--verbose', action='store_true')
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Python runs a command for it, once: here, where nobody listens yet.
    platform.processor()
    whole.without_pictures()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if kills.in_child(whole.make, folder):
            sys.exit('the whole inputs could not be made')
        import_all((folder / 'modules').read_text().splitlines())
        good = True
        for part in options.only:
            if part == 'kills':
                found = killed(folder / 'images')
                good = good and all({*row} == {'as unbroken'} for row in found.values())
            elif part == 'faults':
                found = injected(folder / 'images')
                good = good and {*found.values()} == {'as intended'}
            else:
                found = malformed(part, folder, options.jobs, options.verbose)
                good = good and not found['bad']
            # Each part is kept at once: a later one may be interrupted.
            page.keep(part, found, made_by())
    page.render()
    sys.exit(not good)


if __name__ == '__main__':
    main()
