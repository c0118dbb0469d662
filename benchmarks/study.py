r"""How many images a gain takes: EuroSAT RGB, a ViT-Ti, one core.

    OMP_NUM_THREADS=1 python benchmarks/study.py --data data/eurosat_rgb \
        --weights data/vit_tiny_patch16_224.safetensors --output outputs/study

The data folder holds train/, val/ and test/, one folder a class inside. Each contender
of `CONTENDERS` runs once per seed, with global views of 64 and local ones of 32 pixels.
Before the first step and at the steps of `STEPS`, 10-NN accuracy on the validation
split and the measures without labels are appended to `study.jsonl` in the output
folder, with the commit, and the delta is kept. Runs that are there are skipped, so the
study can be stopped and started at will; a run that was stopped begins again.

`--table` only prints what the lines say: how many images a gain of 5 and of 10 points
took, and how the measures without labels order the checkpoints; `--picture` draws it.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib.figure import Figure
from report import header
from scipy.stats import spearmanr

from torchgeo_explora.adapt import save_delta
from torchgeo_explora.callbacks import LabelFreeQuality, OnlineKNN
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import ExploraDinoTask

BATCH = 64
STEPS = (10, 25, 50, 62, 75, 100, 150, 200, 250, 300, 400, 500, 600, 800)
COMMON: dict[str, Any] = {
    'recipe': 'paper',
    'model': 'vit_tiny_patch16_224',
    'image_size': 64,
    'views': {
        'local_size': 32,
        'local_views': 4,
        'global_scale': (0.25, 1.0),
        'local_scale': (0.1, 0.4),
        'strength': 0.5,
    },
}
HEAD = {'prototypes': 512, 'hidden_dim': 512, 'bottleneck_dim': 64}
COLD = HEAD | {'teacher_temperature': (0.02, 0.03)}
#: LoRA on queries and values only, at a higher rate than that of `recipe: short`.
SHORT: dict[str, Any] = {
    'rank': 16,
    'alpha': 16,
    'base_lr': 2e-2,
    'objective': COLD | {'momentum': (0.9, 1.0)},
}
#: Steps and settings by name.
CONTENDERS: dict[str, tuple[int, dict[str, Any]]] = {
    'short': (400, {'recipe': 'short'}),
    'twice the rate': (400, {'recipe': 'short', 'base_lr': 1.5625e-2}),
    'queries and values': (400, SHORT),
    'recipe': (
        300,
        {'rank': 16, 'base_lr': 2e-3, 'objective': COLD | {'momentum': (0.98, 1.0)}},
    ),
    'lora alone': (150, SHORT | {'unfreeze': ()}),
    'block alone': (150, SHORT | {'rank': 0, 'alpha': None}),
    # Which block to train in full, beside what `explora suggest` says.
    'block 1': (100, SHORT | {'unfreeze': (0,)}),
    'block 7': (100, SHORT | {'unfreeze': (6,)}),
    'block 12': (100, SHORT),
    # The paper's temperatures, bottleneck, momentum and rate, with fewer prototypes.
    'paper': (
        150,
        {
            'rank': 64,
            'base_lr': 1e-3,
            'objective': {'prototypes': 4096},
        },
    ),
    'full': (
        400,
        {
            'rank': 0,
            'modules': ('',),
            'base_lr': 2e-3,
            'objective': SHORT['objective'] | {'whiten_head': True},
        },
    ),
    # For the weights of a DINOv2 ViT-S/14: give its file as --weights.
    'dinov2 small': (
        100,
        SHORT
        | {
            'model': 'vit_small_patch14_dinov2.lvd142m',
            'image_size': 56,
            'views': COMMON['views'] | {'local_size': 28},
            'base_lr': 5e-3,
        },
    ),
    # Twenty times too fast: what a collapse looks like.
    'too fast': (100, SHORT | {'base_lr': 0.4}),
}


def due(trainer: Trainer, task: Any) -> bool:
    """Return whether this is a step to measure after."""
    return trainer.global_step in (*STEPS, task.planned_steps)


class Clock(Callback):
    """Processor seconds of training, without what follows it in a step.

    It must stand before the callbacks that measure.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self.spent = 0.0
        self._began = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start."""
        self._began = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop."""
        self.spent += time.process_time() - self._began


class Keep(Callback):
    """Append what other callbacks measured to a file of lines, and keep the delta.

    Args:
        clock: Knows the time that was spent.
        knn: Measures accuracy; it runs before.
        quality: Measures without labels; it runs before.
        folder: Where deltas go.
        lines: The file.
        known: What describes the run.
    """

    def __init__(
        self,
        clock: Clock,
        knn: OnlineKNN,
        quality: LabelFreeQuality,
        folder: Path,
        lines: Path,
        known: dict[str, Any],
    ) -> None:
        """Keep the arguments."""
        self.clock, self.knn, self.quality = clock, knn, quality
        self.folder, self.lines, self.known = folder, lines, known

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the start."""
        self._write(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Write what was measured."""
        if due(trainer, pl_module):
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, task: Any) -> None:
        step = trainer.global_step
        save_delta(task.objective.pretrained, self.folder / f'{step:04d}.safetensors')
        row = {
            'step': step,
            'images': step * BATCH,
            'cpu_seconds': round(self.clock.spent, 1),
            'knn': round(self.knn.history[step], 4),
            **{k: round(v, 5) for k, v in self.quality.history[step].items()},
        }
        print(self.known['run'], self.known['seed'], row, flush=True)
        with self.lines.open('a') as file:
            file.write(json.dumps(self.known | row) + '\n')


def run(name: str, seed: int, data: Path, weights: str, output: Path) -> None:
    """Train a contender, unless it is there.

    Args:
        name: One of `CONTENDERS`.
        seed: Of everything.
        data: Folder of the images.
        weights: File of the base.
        output: Folder of lines and deltas.
    """
    folder = output / f'{name.replace(" ", "_")}-{seed}'
    lines, done = output / 'study.jsonl', folder / 'done'
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    steps, settings = CONTENDERS[name]
    known = {
        'run': name,
        'seed': seed,
        'commit': header(torch.device('cpu'), None)['commit'],
    }
    seed_everything(seed, verbose=False)
    task = ExploraDinoTask(weights=weights, seed=seed, **(COMMON | settings))
    clock, knn = Clock(), OnlineKNN(bank=3500, queries=1500)
    quality = LabelFreeQuality(images=512)
    knn.due = quality.due = due  # type: ignore[method-assign]
    watch = [clock, knn, quality, Keep(clock, knn, quality, folder, lines, known)]
    Trainer(
        accelerator='cpu',
        precision='bf16-mixed',
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=watch,
    ).fit(task, ImageFolderDataModule(data, batch_size=BATCH))
    done.touch()


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the last line of each run, seed and step."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found[row['run'], row['seed'], row['step']] = row
    return [*found.values()]


def curves(lines: list[dict[str, Any]]) -> Iterator[tuple[str, int, dict[int, float]]]:
    """Yield name, seed and accuracy by step of each run."""
    for name, seed in dict.fromkeys((row['run'], row['seed']) for row in lines):
        mine = [row for row in lines if (row['run'], row['seed']) == (name, seed)]
        yield name, seed, {row['step']: row['knn'] for row in mine}


def gains(lines: list[dict[str, Any]]) -> str:
    """Return images until a gain of 5 and of 10 points, and the best, as Markdown."""
    table = ['| run | seed | +5 points | +10 points | best | steps |', '|' + '---|' * 6]
    for name, seed, curve in curves(lines):
        start = curve[0]
        after = [
            next((str(s * BATCH) for s, v in curve.items() if v >= start + gain), '-')
            for gain in (0.05, 0.1)
        ]
        best = max(curve, key=lambda step: curve[step])
        table.append(
            f'| {name} | {seed} | {after[0]} | {after[1]} |'
            f' {curve[best]:.4f} (step {best}) | {max(curve)} |'
        )
    return '\n'.join(table)


MEASURES = (
    *('rankme', 'lidar', 'patch_rank', 'alignment', 'uniformity', 'variance_8'),
    *('neighbours', 'retrieval'),
)


def correlations(lines: list[dict[str, Any]]) -> str:
    """Return how each measure orders checkpoints, beside 10-NN, as Markdown.

    Spearman's rank correlation with accuracy: over all checkpoints after the start, and
    within each run of at least 5 (mean, and the smallest and largest).
    """
    after = [row for row in lines if row['step']]
    names = [name for name in MEASURES if all(name in row for row in after)]
    count = Counter((row['run'], row['seed']) for row in after)
    runs = [run for run in count if count[run] >= 5]

    def spearman(rows: list[dict[str, Any]], name: str) -> float:
        pairs = [[row[name] for row in rows], [row['knn'] for row in rows]]
        return float(spearmanr(*pairs).statistic)

    many = f'all {len(after)} checkpoints | within a run: mean of {len(runs)}'
    table = [f'| measure | {many} | least | most |', '|' + '---|' * 5]
    for name in names:
        within = [
            spearman([r for r in after if (r['run'], r['seed']) == run], name)
            for run in runs
        ]
        table.append(
            f'| `{name}` | {spearman(after, name):+.2f} |'
            f' {statistics.mean(within):+.2f} | {min(within):+.2f} |'
            f' {max(within):+.2f} |'
        )
    return '\n'.join(table)


def picture(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against images seen, and against each measure."""
    names = [name for name in MEASURES if all(name in row for row in lines)]
    kinds = [*dict.fromkeys(row['run'] for row in lines)]
    figure = Figure(figsize=(13, 6.2), layout='constrained')
    panels = figure.subplots(2, 5).flat
    for axes, measure in zip(panels, ('images', *names), strict=False):
        for run, seed in dict.fromkeys((row['run'], row['seed']) for row in lines):
            mine = [r for r in lines if (r['run'], r['seed']) == (run, seed)]
            x, y = ([row[key] for row in mine] for key in (measure, 'knn'))
            color = f'C{kinds.index(run)}'
            axes.plot(x, y, 'o-', markersize=3, linewidth=0.8, color=color, label=run)
        axes.set_xlabel(measure)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel('10-NN accuracy')
    handles, labels = figure.axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend([*once.values()], [*once], loc='lower right')
    for axes in figure.axes[len(names) + 1 :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', type=Path)
    parser.add_argument('--weights')
    parser.add_argument('--output', type=Path, required=True)
    tiny = [name for name, (_, own) in CONTENDERS.items() if 'model' not in own]
    parser.add_argument('--only', nargs='+', choices=CONTENDERS, default=tiny)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--table', action='store_true')
    parser.add_argument('--picture', type=Path)
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        for seed in options.seeds:
            for name in options.only:
                run(name, seed, options.data, options.weights, options.output)
    lines = rows(options.output / 'study.jsonl')
    print(gains(lines), correlations(lines), sep='\n\n')
    if options.picture:
        picture(lines, options.picture)


if __name__ == '__main__':
    main()
