r"""What a delta gains downstream: base against base + delta on EuroSAT RGB.

    OMP_NUM_THREADS=1 python benchmarks/eurosat_downstream.py --data data/eurosat_rgb \
        --weights data/vit_tiny_patch16_224.safetensors \
        --delta outputs/eurosat_rgb/best.safetensors \
        --output outputs/eurosat_downstream.jsonl

With several deltas, from runs with different seeds, each seed uses its own.

The data folder holds train/, val/ and test/, one folder per class inside. Every run
goes through the project's own tasks and appends one JSON line to the output when it is
finished; finished runs are skipped, so the study can be stopped and restarted at any
time. Seed 0 of everything comes first, so that a study that is cut off still fills the
table. At the end, or at once with --table, the table is printed as Markdown.

Nothing is chosen on the test split: *held_out* picks the probe's classifier on the
validation split, and fine-tuning scores its last step (*paper* is the protocol that
chooses on the reported split). A seed draws the labelled images, the heads and the
order of the batches.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from report import header

from torchgeo_explora.adapt import read_delta_metadata
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraKNNTask,
    ExploraLinearProbeTask,
)
from torchgeo_explora.tasks.run.precision import emulates_bfloat16

BATCH = 64
#: Shares of the labels, and the optimizer steps of fine-tuning for each.
FINETUNING_STEPS = {0.01: 40, 0.1: 100, 1.0: 250}
PROBE_STEPS = 1000
#: What is trained, and base rates (a quarter of them is used, for batches of 64): each
#: the best of three on the validation split, with the base, seed 0, 10 % of the labels
#: and 50 steps at 64 px (accuracy 0.551, 0.642, 0.688 at 4e-3, 1.6e-2, 4e-2, and 0.508,
#: 0.607, 0.632 at 4e-4, 1.2e-3, 4e-3). The rest are the task's defaults.
FINETUNING: dict[str, dict[str, Any]] = {
    'lora-r8': {'rank': 8, 'base_lr': 4e-2},
    'full': {'rank': 0, 'modules': [''], 'base_lr': 4e-3},
}
METHODS = ('knn', 'probe', *FINETUNING)


class Run(NamedTuple):
    """One row of the study."""

    seed: int
    method: str
    share: float
    model: str
    """'base' or 'delta'."""


def runs(seeds: int, models: tuple[str, ...], deltas: int) -> Iterator[Run]:
    """Yield all runs: seed by seed, the cheap ones first, the models in turn.

    Args:
        seeds: Number of seeds.
        models: 'base', 'delta' or both.
        deltas: Number of different deltas.
    """
    for seed in range(seeds):
        for methods in (('knn', 'probe'), tuple(FINETUNING)):
            for share in FINETUNING_STEPS:
                for method in methods:
                    for model in models:
                        # With all labels, kNN involves no random draw.
                        different = deltas if model == 'delta' else 1
                        if method == 'knn' and share == 1 and seed >= different:
                            continue
                        yield Run(seed, method, share, model)


def labelled_share(data: Path, place: Path, share: float, seed: int) -> Path:
    """Return a folder of links to a share of each class, and to all of val and test.

    Args:
        data: Holds train/, val/ and test/.
        place: Where the folder is made.
        share: Share of the images of a class, in (0, 1].
        seed: Seed of the draw; for one seed, small shares are contained in large ones.
    """
    root = place / f'share{share}-seed{seed}'
    if root.exists():
        return root
    for folder in sorted(path for path in (data / 'train').iterdir() if path.is_dir()):
        images = sorted(folder.iterdir())
        random.Random(f'{seed} {folder.name}').shuffle(images)
        chosen = root / 'train' / folder.name
        chosen.mkdir(parents=True)
        for image in images[: max(1, round(share * len(images)))]:
            (chosen / image.name).symlink_to(image)
    for split in ('val', 'test'):
        (root / split).symlink_to(data / split)
    return root


def precision() -> Literal['32-true', 'bf16-mixed']:
    """Return the precision in which this machine's processor is fastest."""
    return '32-true' if emulates_bfloat16() else 'bf16-mixed'


def trainer(place: str | Path, steps: int, *callbacks: Callback) -> Trainer:
    """Return a trainer without validation that keeps only the metrics."""
    return Trainer(
        accelerator='cpu',
        precision=precision(),
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place,
        callbacks=[*callbacks],
    )


def measure(
    run: Run, root: Path, backbone: dict[str, Any], cache: Path, place: str
) -> dict[str, Any]:
    """Train and score one run.

    Args:
        run: What is trained, and on what.
        root: Folder of `labelled_share`.
        backbone: Arguments of the task: weights, delta, size.
        cache: Folder for features of frozen backbones.
        place: Folder for whatever the trainer writes.

    Returns:
        Metrics of the test split and `trained`, the number of parameters.
    """
    seed_everything(run.seed, verbose=False)
    data = ImageFolderDataModule(root, batch_size=BATCH)
    classes = len(list((root / 'train').iterdir()))
    task: Any
    steps = 0
    if run.method == 'knn':
        task = ExploraKNNTask(**backbone, k=(10,))
    elif run.method == 'probe':
        task, steps = (
            ExploraLinearProbeTask(
                classes, **backbone, cache=str(cache), seed=run.seed
            ),
            PROBE_STEPS,
        )
    else:
        steps = FINETUNING_STEPS[run.share]
        arguments = {**backbone, **FINETUNING[run.method], 'seed': run.seed}
        task = ExploraClassificationTask(num_classes=classes, **arguments)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    if steps:
        trainer(place, steps).fit(task, data)
    judge = trainer(place, -1)
    if run.method == 'probe':
        judge.limit_val_batches = 1.0
        judge.validate(task, data, verbose=False)
    (metrics,) = judge.test(task, data, verbose=False)
    best = {}
    if run.method == 'probe':
        best = {'chosen': task.heads.settings[task.selection.chosen]._asdict()}
    return {'trained': trained, 'steps': steps, 'metrics': metrics, **best}


def scores(record: dict[str, Any]) -> dict[str, float]:
    """Return what the table shows for a run, by the name of its row."""
    metrics = record['metrics']
    if record['method'] == 'knn':
        return {'10-NN': metrics['test_knn_10']}
    if record['method'] == 'probe':
        return {
            'linear probe, held_out': metrics['test_held_out'],
            'linear probe, paper': metrics['test_paper'],
        }
    name = {'lora-r8': 'LoRA-r8', 'full': 'full fine-tuning'}[record['method']]
    return {name: metrics['test_OverallAccuracy']}


def table(records: list[dict[str, Any]]) -> str:
    """Return the study as Markdown: mean and standard deviation in points."""
    cells: dict[tuple[str, float], dict[str, list[float]]] = {}
    costs: dict[tuple[str, float], list[tuple[int, float]]] = {}
    for record in records:
        for name, score in scores(record).items():
            row = (name, record['share'])
            of_model = cells.setdefault(row, {}).setdefault(record['model'], [])
            of_model.append(100 * score)
            costs.setdefault(row, []).append((record['trained'], record['cpu_seconds']))
    lines = [
        '| | labels | base | base + delta | difference | trained | CPU seconds |',
        '|---|---|---|---|---|---|---|',
    ]
    order = sorted(cells, key=lambda row: (row[1], list(cells).index(row)))
    for name, share in order:
        models = cells[name, share]
        base, delta = models.get('base', []), models.get('delta', [])
        gain = f'{_mean(delta) - _mean(base):+.1f}' if base and delta else ''
        trained = costs[name, share][0][0]
        seconds = statistics.mean(cost[1] for cost in costs[name, share])
        lines.append(
            f'| {name} | {share:.0%} | {_cell(base)} | {_cell(delta)} | {gain} |'
            f' {trained:,} | {seconds:.0f} |'
        )
    return '\n'.join(lines)


def _mean(values: list[float]) -> float:
    return statistics.mean(values)


def _cell(values: list[float]) -> str:
    if not values:
        return ''
    if len(values) == 1:
        return f'{values[0]:.1f} (1)'
    return f'{_mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})'


def read(path: Path) -> list[dict[str, Any]]:
    """Return the finished runs of a file; a line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f'left out: {line[:60]}...')
    return records


def append(path: Path, record: dict[str, Any]) -> None:
    """Append a line, even after one that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b'', b'\n')
    with path.open('a') as file:
        file.write(('' if whole else '\n') + json.dumps(record) + '\n')


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', type=Path, help='folder of train/, val/ and test/')
    parser.add_argument('--weights', help="file of the base's weights")
    parser.add_argument(
        '--delta',
        nargs='+',
        default=(),
        help='files of the deltas; only the base if left out',
    )
    parser.add_argument('--output', type=Path, required=True, help='file of runs')
    parser.add_argument('--model', default='vit_tiny_patch16_224', help='name in timm')
    parser.add_argument('--image-size', type=int, default=96, help='pixels')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--methods', nargs='+', default=METHODS, choices=METHODS)
    parser.add_argument('--shares', nargs='+', type=float, default=[*FINETUNING_STEPS])
    parser.add_argument('--table', action='store_true', help='only print the table')
    options = parser.parse_args(arguments)
    if not options.table:
        _study(options)
    print(table(read(options.output)), flush=True)


def _study(options: argparse.Namespace) -> None:
    warnings.filterwarnings('ignore')
    torch.set_float32_matmul_precision('high')
    models = ('base', 'delta') if options.delta else ('base',)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for run in runs(options.seeds, models, len(set(options.delta))):
            if run.method not in options.methods or run.share not in options.shares:
                continue
            delta = None
            if run.model == 'delta':
                delta = options.delta[run.seed % len(options.delta)]
            identity = run._asdict() | {
                'image_size': options.image_size,
                'weights': Path(options.weights).name,
                'delta': read_delta_metadata(delta)['delta'][:12] if delta else None,
            }
            done = read(options.output)
            if any(identity.items() <= record.items() for record in done):
                continue
            root = labelled_share(
                options.data.resolve(), place / 'data', run.share, run.seed
            )
            backbone = {
                'model': options.model,
                'weights': options.weights,
                'delta': delta,
                'image_size': options.image_size,
            }
            began, cpu = time.perf_counter(), time.process_time()
            found = measure(run, root, backbone, place / 'features', str(place))
            spent = {
                'seconds': round(time.perf_counter() - began, 1),
                'cpu_seconds': round(time.process_time() - cpu, 1),
            }
            record = identity | {'precision': precision()} | found | spent
            where = header(torch.device('cpu'), None)
            append(options.output, record | {'run': where})
            print(identity, scores(record), spent, flush=True)


if __name__ == '__main__':
    main()
