"""Everything that needs a GPU, in one run: parity, speed, and a real adaptation.

    python benchmarks/gpu.py --output benchmarks/results/h200.json \
        --data data/eurosat_rgb --weights data/vit_tiny_patch16_224.safetensors

The file is complete after every part, so that a run that is cut off leaves what it has
measured. `--device cpu --tiny` tries every part at toy size. The exit code is 1 if a
part failed, parity does not hold or attention is not fused. Variants of the adaptation
other than the two built-in ones are given as a JSON list:
`[{"name": "weak", "strength": 0.25, "prototypes": 2048}]`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()

import adaptation  # noqa: E402
import masked  # noqa: E402
import parity  # noqa: E402
import plain_port  # noqa: E402
import steps  # noqa: E402
import torch  # noqa: E402
import views  # noqa: E402
from report import NotRunError, Report, header  # noqa: E402

#: Share of the time after which a part may not start anything more.
UNTIL = {
    'parity': 1.0,
    'step': 0.45,
    'plain_port': 0.75,
    'masked': 0.85,
    'views': 0.9,
    'adaptation': 1.0,
}
PARTS = (*UNTIL, 'ratios')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and return the exit code."""
    options = _parse(arguments)
    device = torch.device(options.device)
    report = Report(options.output, PARTS, header(device, options.commit))

    def left(part: str) -> float:
        return 60 * options.minutes * UNTIL[part] - (time.monotonic() - BEGAN)

    shared = (device, options.tiny)
    timed = {part: (*shared, partial(left, part), report.save) for part in UNTIL}
    recipes: tuple[adaptation.Recipe, ...] = adaptation.RECIPES
    if options.recipes:
        rows = json.loads(options.recipes.read_text())
        recipes = tuple(adaptation.Recipe(**row) for row in rows)
    measures = {
        'parity': lambda record: parity.run(record, *shared),
        'step': lambda record: steps.run(record, *timed['step']),
        'plain_port': lambda record: plain_port.run(record, *timed['plain_port']),
        'masked': lambda record: masked.run(record, *timed['masked']),
        'views': lambda record: views.run(record, *timed['views']),
        'ratios': lambda record: record.update(ratios(report.content)),
        'adaptation': lambda record: adaptation.run(
            record,
            *timed['adaptation'],
            options.data,
            options.weights,
            options.steps,
            recipes,
            options.output,
        ),
    }
    for part in PARTS:
        if part not in options.parts:
            report.content[part]['reason'] = 'left out by --parts'
        elif part in UNTIL and left(part) <= 0:
            report.content[part]['reason'] = f'--minutes {options.minutes} were over'
        else:
            report.run(part, measures[part])
    report.content['seconds'] = round(time.monotonic() - BEGAN, 1)
    report.save()
    failed = [part for part in PARTS if report.content[part]['status'] == 'failed']
    broken = report.content['parity'].get('within') is False
    kernels = report.content['step'].get('kernels')
    slow = kernels is not None and kernels.get('fused') is not True
    print(json.dumps(report.content['ratios'], indent=1))
    print(f'{options.output}: failed {failed}, parity broken: {broken},', end=' ')
    print(f'attention not fused, or not known to be: {slow}', flush=True)
    return int(bool(failed) or broken or slow)


def ratios(content: dict[str, Any]) -> dict[str, Any]:
    """Return how many times as fast ours is, and its share of the memory.

    A run of `step` is compared with (a), all trained, and (b), LoRA, for the same model
    and micro-batch; MAE with (c), views with (d) in two processes.

    Raises:
        NotRunError: If nothing was measured on both sides.
    """
    found: dict[str, Any] = {}

    def compare(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        if ours.get('status') == theirs.get('status') == 'done':
            speed = ours['images_per_second'] / theirs['images_per_second']
            found[name] = {'speed': round(speed, 3)}
            memory = ours['peak_memory_gib'], theirs['peak_memory_gib']
            if all(isinstance(value, float) for value in memory):
                found[name]['memory'] = round(memory[0] / memory[1], 3)

    ports = content['plain_port'].get('runs', {})
    for key, run in content['step'].get('runs', {}).items():
        model, _, size = key.partition(', ')[0], *key.rpartition(', ')[1:]
        for letter, what in (('a', 'all trained'), ('b', 'LoRA')):
            port = ports.get(f'{model}, {what}, {size}', {})
            compare(f'{key}: against ({letter})', run, port)
    runs = content['masked'].get('runs', {})
    compare('MAE: against (c)', runs.get('explora', {}), runs.get('lightly', {}))
    if (record := content['views'])['status'] == 'done':
        rates = [
            record[k]['images_per_second'] for k in ('batched', 'pil, 2 processes')
        ]
        found['views: against (d), 2 processes'] = {
            'speed': round(rates[0] / rates[1], 3)
        }
    if not found:
        raise NotRunError('nothing was measured on both sides')
    return found


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--output', type=Path, required=True, help='JSON file; deltas go beside it')
    add('--data', type=Path, help='folder with train, val and test, classes inside')
    add('--weights', type=Path, help="weights of timm's vit_tiny_patch16_224")
    add('--minutes', type=float, default=8.0, help='for everything')
    add('--steps', type=int, help='of the adaptation; all that fit by default')
    add('--recipes', type=Path, help='JSON list of recipes of the adaptation')
    add('--parts', nargs='+', choices=PARTS, default=PARTS, help='run these only')
    add('--device', default='cuda', help='cuda, or cpu for a trial')
    add('--tiny', action='store_true', help='toy sizes')
    add('--commit', help='for the file, if git cannot tell')
    options = parser.parse_args(arguments)
    if options.device.startswith('cuda') and not torch.cuda.is_available():
        parser.error('no CUDA device: try with --device cpu --tiny')
    return options


if __name__ == '__main__':
    raise SystemExit(main())
