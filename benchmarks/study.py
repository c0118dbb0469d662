r"""How many images a gain takes, and what each part of the method adds.

    OMP_NUM_THREADS=1 python benchmarks/study.py --data data/eurosat_rgb \
        --weights data/vit_tiny_patch16_224.safetensors --output outputs/study
    OMP_NUM_THREADS=1 python benchmarks/study_test_split.py --data data/eurosat_rgb \
        --weights data/vit_tiny_patch16_224.safetensors --output outputs/study
    python benchmarks/study_tables.py --lines outputs/study

EuroSAT RGB and a ViT-Ti, on one core. The data folder holds train/, val/ and test/, one
folder a class inside. Each contender of `study_contenders.py` runs once per seed. At
the start, at the end and at some steps between, 10-NN accuracy on the validation split
and the measures without labels are appended to `study.jsonl` in the output folder, with
the commit, and the delta is kept. Runs that are there are skipped, so the study can be
stopped and started at will; a run that was stopped begins again.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from eurosat_downstream import append, labelled_share, precision, trainer
from lightning.pytorch import Callback, Trainer, seed_everything
from report import header
from study_contenders import BATCH, COMMON, CONTENDERS, ELSEWHERE, RATES

from torchgeo_explora.adapt import count, save_delta
from torchgeo_explora.callbacks import Cost, LabelFreeQuality, OnlineKNN
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import ExploraDinoTask


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
        cost: Counts operations.
        knn: Measures accuracy; it runs before.
        quality: Measures without labels; it runs before.
        due: Returns whether a step is one to measure after.
        folder: Where deltas go.
        lines: The file.
        known: What describes the run.
    """

    def __init__(
        self,
        clock: Clock,
        cost: Cost,
        knn: OnlineKNN,
        quality: LabelFreeQuality,
        due: Callable[[Trainer, Any], bool],
        folder: Path,
        lines: Path,
        known: dict[str, Any],
    ) -> None:
        """Keep the arguments."""
        self.clock, self.cost, self.knn, self.quality = clock, cost, knn, quality
        self.due, self.folder, self.lines, self.known = due, folder, lines, known

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the start."""
        self._write(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Write what was measured."""
        if self.due(trainer, pl_module):
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, task: Any) -> None:
        step = trainer.global_step
        place = self.folder / f'{step:04d}.safetensors'
        save_delta(task.objective.pretrained, place, {'pooling': task.pooling})
        row = {
            'step': step,
            'images': step * BATCH,
            'cpu_seconds': round(self.clock.spent, 1),
            'tflop': round(self.cost.tflop or 0.0, 2),
            'knn': round(self.knn.history[step], 4),
            **{k: round(v, 5) for k, v in self.quality.history[step].items()},
        }
        print(self.known['run'], self.known['seed'], row, flush=True)
        append(self.lines, self.known | row)


def first_classes(data: Path, root: Path, count: int) -> Path:
    """Return a folder of links to the first classes of each split."""
    for split in ('train', 'val', 'test'):
        (root / split).mkdir(parents=True, exist_ok=True)
        for folder in sorted((data / split).iterdir())[:count]:
            place = root / split / folder.name
            if not place.exists():
                place.symlink_to(folder)
    return root


def run(name: str, seed: int, data: Path, weights: str, output: Path) -> None:
    """Train a contender, unless it is there.

    Args:
        name: One of `CONTENDERS`.
        seed: Of everything.
        data: Folder of the images.
        weights: File of the base.
        output: Folder of lines and deltas.
    """
    folder = output / f'{name}-{seed}'
    if (folder / 'done').exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    steps, settings, share, classes, measured, kind = CONTENDERS[name]
    if share < 1:
        data = labelled_share(data.resolve(), folder, share, seed)
    if classes is not None:
        data = first_classes(data.resolve(), folder / 'classes', classes)
    seed_everything(seed, verbose=False)
    common = COMMON if kind is ExploraDinoTask else {}
    task = kind(**({'weights': weights, 'seed': seed} | common | settings))
    known = {
        'run': name,
        'seed': seed,
        'commit': header(torch.device('cpu'), None)['commit'],
        'precision': precision(),
        'trained': count(task.objective.student)[0],
    }

    def due(trainer: Trainer, _: Any) -> bool:
        return trainer.global_step in (*measured, steps)

    clock, cost, knn = Clock(), Cost(), OnlineKNN(bank=3500, queries=1500)
    quality = LabelFreeQuality(images=512)
    knn.due = quality.due = due  # type: ignore[method-assign, assignment]
    lines = output / 'study.jsonl'
    keep = Keep(clock, cost, knn, quality, due, folder, lines, known)
    trainer(folder, steps, clock, cost, knn, quality, keep).fit(
        task, ImageFolderDataModule(data, batch_size=BATCH)
    )
    (folder / 'done').touch()


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', required=True)
    parser.add_argument('--output', type=Path, required=True)
    # These have another base, or larger images.
    usual = [name for name in CONTENDERS if name not in ELSEWHERE | RATES]
    parser.add_argument('--only', nargs='+', choices=CONTENDERS, default=usual)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.only:
            run(name, seed, options.data, options.weights, options.output)


if __name__ == '__main__':
    main()
