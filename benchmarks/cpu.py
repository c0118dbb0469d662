"""Ratios on a CPU, in one run: our steps against what one would assemble today.

    python benchmarks/cpu.py --output benchmarks/results/cpu.json

Every contender runs in a process of its own, one after the other, so that its memory
can be told. Memory is the largest resident size less that after the imports. The file
is whole after every contender; those that --minutes leave no time for say 'not run'.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()

import torch  # noqa: E402
from report import NotRunError, Report, header  # noqa: E402

FOLDER = Path(__file__).parent
#: In order of importance: a slow machine leaves out the last ones.
PARTS = (
    'lightly_float32',
    'explora_float32',
    'explora_bfloat16',
    'views_pil',
    'views_batched',
    'mae_lightly',
    'mae_explora',
    'checkpoint',
    'imports',
    'peft_float32',
    'lightly_bfloat16',
    'explora_float32_checkpointing',
    'ratios',
)
#: Steps that come first and steps that are timed, of the targets and of the rest. On
#: two cores (a) takes some 16 s a step: all of it some 7 minutes.
STEPS, FEWER = (1, 2), (1, 1)
EXTRA = ('lightly_bfloat16', 'explora_float32_checkpointing')
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
    ' images; views (d) of 256-pixel images. bfloat16 is autocast, and in explora the'
    ' type of the frozen weights. Medians; mfu is over the measured rate of a matrix'
    ' product of the same type.'
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contenders and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--output', type=Path, default=FOLDER / 'results' / 'cpu.json')
    add('--minutes', type=float, default=7.0, help='after these, nothing begins')
    add('--images', type=int, default=8, help='of a step')
    add('--only', nargs='+', choices=PARTS, default=PARTS, help='run these only')
    add('--tiny', action='store_true', help='toy sizes')
    add('--commit', help='for the file, where git cannot tell')
    options = parser.parse_args(arguments)
    report = Report(
        options.output,
        PARTS,
        header(torch.device('cpu'), options.commit) | {'what': WHAT},
    )
    measures: dict[str, Callable[[dict[str, Any]], None]] = {
        name: lambda record, name=name: record.update(contend(name, options))
        for name in PARTS
    }
    measures['imports'] = lambda record: record.update(
        imports(1 if options.tiny else 2)
    )
    measures['ratios'] = lambda record: record.update(ratios(report.content))
    for part in PARTS:
        late = time.monotonic() - BEGAN > 60 * options.minutes
        if part not in options.only:
            report.content[part]['reason'] = 'left out by --only'
        elif late and part != 'ratios':
            report.content[part]['reason'] = f'--minutes {options.minutes} were over'
        else:
            report.run(part, measures[part])
    report.content['seconds'] = round(time.monotonic() - BEGAN, 1)
    report.save()
    print(table(report.content))
    print(json.dumps(report.content['ratios'], indent=1))
    return int(any(report.content[part]['status'] == 'failed' for part in PARTS))


def contend(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a contender found.

    Raises:
        RuntimeError: If it fails, with what it said last.
    """
    command = [sys.executable, str(FOLDER / 'contenders.py'), name]
    command += ['--images', str(options.images), *(['--tiny'] if options.tiny else [])]
    command += ['--steps', *map(str, FEWER if name in EXTRA else STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{name} failed: {done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


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


def ratios(content: dict[str, Any]) -> dict[str, Any]:
    """Return how many times as fast, and the share of the memory, and other shares.

    Raises:
        NotRunError: If nothing was measured on both sides.
    """
    found: dict[str, Any] = {}
    for name, (one, other) in RATIOS.items():
        ours, theirs = content[one], content[other]
        if ours['status'] == theirs['status'] == 'done':
            speed = ours['images_per_second'] / theirs['images_per_second']
            memory = ours['peak_memory_gib'] / theirs['peak_memory_gib']
            found[name] = {'speed': round(speed, 3), 'memory': round(memory, 3)}
            if one.startswith('views'):
                # The images of the other are made in processes of their own.
                del found[name]['memory']
    if (record := content['imports'])['status'] == 'done':
        found['imports, over torchgeo.tasks'] = record['both_over_torchgeo_tasks']
    if (record := content['checkpoint'])['status'] == 'done':
        found['checkpoint of a run, over that of all'] = record['resumable_over_whole']
    if not found:
        raise NotRunError('no contender and its yardstick were both measured')
    return found


def table(content: dict[str, Any]) -> str:
    """Return a line for each contender that was measured in steps."""
    lines = []
    for name in PARTS:
        record = content[name]
        if record['status'] != 'done' or 'images_per_second' not in record:
            continue
        line = f'{name}: {record["images_per_second"]:.2f} images/s'
        line += f', {record["peak_memory_gib"]:.2f} GiB'
        if 'tflop' in record:
            line += f', {record["tflop"]:.3g} TFLOP, MFU {record["mfu"]:.2f}; ms: '
            parts = record['milliseconds'].items()
            line += ', '.join(f'{part} {value:.0f}' for part, value in parts)
        lines.append(line)
    return '\n'.join(lines)


if __name__ == '__main__':
    raise SystemExit(main())
