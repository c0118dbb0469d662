"""Ratios on a CPU, in one run: our steps against what one would put together today.

    python benchmarks/cpu.py --output benchmarks/results/cpu.json

The contenders run one at a time, each in its own process; then those that are compared
run again. The speed of a machine with shared cores varies, so ratios are taken within a
round, and the rounds show how much they vary. Memory is the largest resident size minus
that after the imports. The file is complete after every contender; a contender for
which --minutes left no time is marked as such.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()

import torch  # noqa: E402
from report import NotRunError, Report, header  # noqa: E402

FOLDER = Path(__file__).parent
#: Contenders that are compared are next to each other.
RACES = (
    (
        'lightly_float32',
        'explora_float32',
        'explora_bfloat16',
        'lightly_bfloat16',
        'peft_float32',
        'explora_float32_checkpointing',
    ),
    ('views_pil', 'views_batched'),
    ('mae_lightly', 'mae_explora'),
)
ALONE = ('checkpoint', 'projections', 'imports')
#: In order of importance: on a slow machine, the last ones are left out.
PARTS = (*(name for race in RACES for name in race), *ALONE, 'ratios')
#: Contender and yardstick of each ratio.
RATIOS = {
    'step in float32 against (a) in float32': ('explora_float32', 'lightly_float32'),
    'step in bfloat16 against (a) in float32': ('explora_bfloat16', 'lightly_float32'),
    'step in bfloat16 against (a) in bfloat16': (
        'explora_bfloat16',
        'lightly_bfloat16',
    ),
    'step in float32 against (b) in float32': ('explora_float32', 'peft_float32'),
    'step in float32 with checkpointing against (a)': (
        'explora_float32_checkpointing',
        'lightly_float32',
    ),
    'MAE step against (c)': ('mae_explora', 'mae_lightly'),
    'views against (d)': ('views_batched', 'views_pil'),
}
WHAT = (
    'ViT-S/14, 2 views of 224 and 8 of 98 pixels, 65,536 prototypes, random weights and'
    ' images; D-[-1]-r64 in explora, everything in lightly (a), LoRA by PEFT on qkv,'
    ' the last block and the norms in peft (b); MAE (c) on ViT-S/16 with four times the'
    ' images, ours with LoRA in the decoder, too; views (d) of 256-pixel images.'
    ' bfloat16 is autocast, and in explora the type of the frozen weights. Medians of'
    ' the rounds; mfu is over the rate of a matrix product of the same type, measured'
    ' in each process.'
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contenders and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--output', type=Path, default=FOLDER / 'results' / 'cpu.json')
    add('--minutes', type=float, default=18.0, help='after these, nothing starts')
    add('--images', type=int, default=8, help='in a step')
    add('--rounds', type=int, default=3, help='each times one step after a first')
    add('--only', nargs='+', choices=PARTS, default=PARTS, help='run these only')
    add('--tiny', action='store_true', help='toy sizes')
    add('--commit', help='for the file, if git cannot tell')
    options = parser.parse_args(arguments)
    report = Report(
        options.output,
        PARTS,
        header(torch.device('cpu'), options.commit) | {'what': WHAT},
    )
    for part in PARTS:
        if part not in options.only:
            report.content[part]['reason'] = 'left out by --only'

    def wanted(part: str) -> bool:
        record = report.content[part]
        if part not in options.only or record['status'] == 'failed':
            return False
        late = time.monotonic() - BEGAN > 60 * options.minutes
        if late:
            record['reason'] = f'--minutes {options.minutes} were over'
        return not late

    def again(part: str, record: dict[str, Any]) -> None:
        record |= summary(rounds[part])
        rounds[part].append(contend(part, options))
        record |= summary(rounds[part])

    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTS}
    for race in RACES:
        for _ in range(options.rounds):
            for part in filter(wanted, race):
                report.run(part, partial(again, part))
    for part in filter(wanted, ALONE):
        report.run(
            part,
            lambda record, part=part: record.update(
                imports(1 if options.tiny else 2)
                if part == 'imports'
                else contend(part, options)
            ),
        )
    if 'ratios' in options.only:
        report.run('ratios', lambda record: record.update(ratios(report.content)))
    report.content['seconds'] = round(time.monotonic() - BEGAN, 1)
    report.save()
    print(table(report.content))
    print(json.dumps(report.content['ratios'], indent=1))
    return int(any(report.content[part]['status'] == 'failed' for part in PARTS))


def contend(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a contender found.

    Raises:
        RuntimeError: If it fails, with the end of its output.
    """
    command = [sys.executable, str(FOLDER / 'contenders.py'), name]
    command += ['--images', str(options.images), *(['--tiny'] if options.tiny else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{name} failed: {done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rounds of a contender, and the medians of what they found."""
    found: dict[str, Any] = {'rounds': [*rounds]}
    if not rounds:
        return found
    for key in ('images_per_second', 'peak_memory_gib', 'tflop', 'mfu'):
        if key in rounds[0]:
            found[key] = statistics.median(each[key] for each in rounds)
    if 'milliseconds' in rounds[0]:
        found['milliseconds'] = {
            part: statistics.median(each['milliseconds'][part] for each in rounds)
            for part in rounds[0]['milliseconds']
        }
    return found


def imports(times: int) -> dict[str, Any]:
    """Return the CPU seconds of imports, each the least of several new processes."""
    statements = {
        'torchgeo.tasks': 'import torchgeo.tasks',
        'torchgeo_explora': 'import torchgeo_explora',
        'both': 'import torchgeo_explora, torchgeo.tasks',
    }
    seconds = {
        name: min(_processor_seconds(code) for _ in range(times))
        for name, code in statements.items()
    }
    base = seconds['torchgeo.tasks']
    return {
        'cpu_seconds': {name: round(value, 3) for name, value in seconds.items()},
        'package_over_torchgeo_tasks': round(seconds['torchgeo_explora'] / base, 3),
        'both_over_torchgeo_tasks': round(seconds['both'] / base, 3),
    }


def _processor_seconds(code: str) -> float:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
    return spent() - before


def ratios(content: dict[str, Any]) -> dict[str, Any]:
    """Return how many times as fast ours is, its share of memory, and other ratios.

    Each is the median of the ratios within a round; 'rounds' has those of the speed.

    Raises:
        NotRunError: If nothing was measured on both sides.
    """
    found: dict[str, Any] = {}
    for name, sides in RATIOS.items():
        # A round that was cut off has one side only.
        pairs = [
            *zip(*(content[side].get('rounds', []) for side in sides), strict=False)
        ]
        if not pairs:
            continue
        if name.startswith('views'):
            # Without memory: PIL's images are made in separate processes.
            speeds = [_share(pair, 'images_per_second') for pair in pairs]
            found[name] = {'speed': statistics.median(speeds), 'rounds': speeds}
            continue
        steps = [[side['milliseconds'] for side in reversed(pair)] for pair in pairs]
        speeds = [_share(pair, 'step') for pair in steps]
        shares = [_share(pair, 'peak_memory_gib') for pair in pairs]
        found[name] = {
            'speed': statistics.median(speeds),
            'rounds': speeds,
            'memory': statistics.median(shares),
        }
    if (record := content['imports'])['status'] == 'done':
        found['imports, over torchgeo.tasks'] = record['both_over_torchgeo_tasks']
    if (record := content['checkpoint'])['status'] == 'done':
        found['checkpoint of a run, over that of all'] = record['resumable_over_whole']
    if not found:
        raise NotRunError('no contender and its yardstick were both measured')
    return found


def _share(pair: Sequence[dict[str, Any]], key: str) -> float:
    return round(pair[0][key] / pair[1][key], 3)


def table(content: dict[str, Any]) -> str:
    """Return a line for each contender that was measured in steps."""
    lines = []
    for name in PARTS:
        record = content[name]
        if record['status'] != 'done' or 'images_per_second' not in record:
            continue
        line = f'{name}: {record["images_per_second"]:.2f} images/s'
        if 'tflop' in record:
            line += f', {record["peak_memory_gib"]:.2f} GiB'
            line += f', {record["tflop"]:.3g} TFLOP, MFU {record["mfu"]:.2f}; ms: '
            parts = record['milliseconds'].items()
            line += ', '.join(f'{part} {value:.0f}' for part, value in parts)
        lines.append(line)
    return '\n'.join(lines)


if __name__ == '__main__':
    raise SystemExit(main())
