"""Ratios on a CPU, in one run: our steps against what one would assemble today.

    python benchmarks/cpu.py --output benchmarks/results/cpu.json

Each ratio is a race of two contenders in processes of their own, which take turns: see
`race.py`. Memory is the largest resident size less that after the imports.
The file is whole after every part; what --minutes leave no time for says 'not run'.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()

import torch  # noqa: E402
from race import alone, race  # noqa: E402
from report import Report, header  # noqa: E402

FOLDER = Path(__file__).parent
#: Ours and its yardstick, in order of importance: a slow machine leaves out the last.
RACES = {
    'step in float32 against (a) in float32': ('explora_float32', 'lightly_float32'),
    'step in bfloat16 against (a) in float32': ('explora_bfloat16', 'lightly_float32'),
    'views against (d)': ('views_batched', 'views_pil'),
    'MAE step against (c)': ('mae_explora', 'mae_lightly'),
    'step in float32 against (b) in float32': ('explora_float32', 'peft_float32'),
    'step in bfloat16 against (a) in bfloat16': (
        'explora_bfloat16',
        'lightly_bfloat16',
    ),
    'step in float32 with checkpointing against (a)': (
        'explora_float32_checkpointing',
        'lightly_float32',
    ),
}
PARTS = (*RACES, 'checkpoint', 'projections', 'imports')
WHAT = (
    'ViT-S/14, 2 views of 224 and 8 of 98 pixels, 65,536 prototypes, random weights and'
    ' images; D-[-1]-r64 in explora, everything in lightly (a), LoRA by PEFT on qkv,'
    ' the last block and the norms in peft (b); MAE (c) on ViT-S/16 with four times the'
    ' images; views (d) of 256-pixel images. bfloat16 is autocast, and in explora the'
    ' type of the frozen weights. Medians of the steps; mfu is over the'
    ' measured rate of a matrix product of the same type.'
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--output', type=Path, default=FOLDER / 'results' / 'cpu.json')
    add('--minutes', type=float, default=15.0, help='after these, nothing begins')
    add('--images', type=int, default=8, help='of a step')
    add('--rounds', type=int, default=3, help='turns, of a step that is timed')
    add('--only', nargs='+', choices=PARTS, default=PARTS, help='run these only')
    add('--tiny', action='store_true', help='toy sizes')
    add('--commit', help='for the file, where git cannot tell')
    options = parser.parse_args(arguments)
    report = Report(
        options.output,
        PARTS,
        header(torch.device('cpu'), options.commit) | {'what': WHAT},
    )
    given = ['--images', str(options.images), '--rounds', str(options.rounds)]
    given += ['--tiny'] if options.tiny else []
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        name: lambda names=names: race(names, given) for name, names in RACES.items()
    }
    for name in ('checkpoint', 'projections'):
        measures[name] = lambda name=name: alone(name, given)
    measures['imports'] = lambda: imports(1 if options.tiny else 2)
    for part in PARTS:
        if part not in options.only:
            report.content[part]['reason'] = 'left out by --only'
        elif time.monotonic() - BEGAN > 60 * options.minutes:
            report.content[part]['reason'] = f'--minutes {options.minutes} were over'
        else:
            measure = measures[part]
            report.run(part, lambda record, measure=measure: record.update(measure()))
            print(line(part, report.content[part]), flush=True)
    report.content['seconds'] = round(time.monotonic() - BEGAN, 1)
    report.save()
    return int(any(report.content[part]['status'] == 'failed' for part in PARTS))


def imports(times: int) -> dict[str, Any]:
    """Return CPU seconds of imports, the least of some, each in a new process."""
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


def line(part: str, record: dict[str, Any]) -> str:
    """Return what a reader wants to know of a part."""
    found = [f'{part}: {record["status"]}']
    if 'speed' in record:
        found[0] += f', {record["speed"]:.2f}x images/s'
        found[0] += f' (rounds {record["rounds"]})' if 'rounds' in record else ''
        found[0] += f', {record["memory"]:.2f}x memory' if 'memory' in record else ''
        for side in ('ours', 'theirs'):
            found.append(f'  {side}: {_side(record[side])}')
    return '\n'.join(found)


def _side(record: dict[str, Any]) -> str:
    text = f'{record["images_per_second"]:.2f} images/s'
    if 'tflop' in record:
        text += f', {record["peak_memory_gib"]:.2f} GiB'
        text += f', {record["tflop"]:.3g} TFLOP, MFU {record["mfu"]:.2f}; ms: '
        parts = record['milliseconds'].items()
        text += ', '.join(f'{part} {value:.0f}' for part, value in parts)
    return text


if __name__ == '__main__':
    raise SystemExit(main())
