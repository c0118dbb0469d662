"""Whether losses in bfloat16 follow those in float32, over a run of real tasks.

    python benchmarks/half_precision.py

trains a small ViT on synthetic scenes for 200 optimizer steps, with `ExploraDinoTask`
and with `ExploraMAETask`: in float32, and under `bf16-mixed` with the frozen weights in
bfloat16; same seeds, same images, same views and masks. Each term of the loss is
averaged over 20 steps, and each average must lie within a band around float32's. The
exit code is 1 if one does not. What the losses are does not depend on the machine's
load; two minutes on one core.
"""

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from report import Report, header
from torch import Tensor

from torchgeo_explora.datamodules import SyntheticScenesDataModule
from torchgeo_explora.tasks import ExploraDinoTask, ExploraMAETask

#: Largest deviation of an average from float32's, over float32's total loss.
BAND = 0.01
WINDOW = 20
BACKBONE = {
    'model': 'vit_tiny_patch16_224',
    'weights': None,
    'model_args': {'patch_size': 8, 'embed_dim': 96, 'depth': 4, 'num_heads': 3},
    'image_size': 64,
    'rank': 16,
}
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    'dino': (
        ExploraDinoTask,
        {'local_views': 4, 'prototypes': 1024, 'hidden_dim': 256, 'bottleneck_dim': 64}
        | {'base_lr': 1e-2},
    ),
    'mae': (
        ExploraMAETask,
        {'decoder_dim': 64, 'decoder_depth': 2, 'decoder_heads': 4, 'base_lr': 2e-2},
    ),
}
PRECISIONS = {'32-true': 'float32', 'bf16-mixed': 'bfloat16'}


class Losses(Callback):
    """Keep every step's terms."""

    def __init__(self) -> None:
        """Have none yet."""
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """Add the terms of a step."""
        self.rows.append(
            {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith('loss')
            }
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    default = Path(__file__).parent / 'results' / 'half_precision.json'
    add('--output', type=Path, default=default)
    add('--steps', type=int, default=200)
    add('--accelerator', choices=('cpu', 'gpu'), default='cpu')
    add('--tasks', nargs='+', choices=TASKS, default=[*TASKS])
    add('--commit', help='for the file, where git cannot tell')
    options = parser.parse_args(arguments)
    warnings.filterwarnings('ignore')
    device = 'cuda' if options.accelerator == 'gpu' else 'cpu'
    about = header(torch.device(device), options.commit) | {
        'what': 'terms of the loss, averages over steps; deviation: the largest'
        " difference of an average from float32's, over float32's total loss there",
        'band': BAND,
        'steps': options.steps,
        'backbone': BACKBONE,
    }
    report = Report(options.output, tuple(TASKS), about)
    for name in options.tasks:
        report.run(
            name,
            lambda record, n=name: compare(
                record, n, options.steps, options.accelerator
            ),
        )
    records = [report.content[name] for name in options.tasks]
    return int(not all(record.get('within') for record in records))


def compare(record: dict[str, Any], name: str, steps: int, accelerator: str) -> None:
    """Fill the record of one task."""
    curves = {kind: train(name, kind, steps, accelerator) for kind in PRECISIONS}
    whole, half = (averages(rows) for rows in curves.values())
    deviation = {
        term: float(((half[term] - whole[term]).abs() / whole['loss']).max())
        for term in whole
    }
    record |= {
        'arguments': TASKS[name][1],
        'averages': {
            kind: {term: values.tolist() for term, values in averages(rows).items()}
            for kind, rows in curves.items()
        },
        # A band says little about a curve that does not move.
        'moved': float(1 - whole['loss'].min() / whole['loss'].max()),
        'deviation': deviation,
        'within': max(deviation.values()) <= BAND,
    }


def train(
    name: str, precision: str, steps: int, accelerator: str
) -> list[dict[str, float]]:
    """Return the terms of each step of a run."""
    kind, arguments = TASKS[name]
    seed_everything(0, verbose=False)
    task = kind(**BACKBONE, **arguments, frozen_dtype=PRECISIONS[precision])
    data = SyntheticScenesDataModule(
        num_train=160, num_val=2, num_test=2, batch_size=16
    )
    losses = Losses()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=accelerator,
            precision=precision,
            max_steps=steps,
            callbacks=[losses],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(task, data)
    return losses.rows


def averages(rows: list[dict[str, float]]) -> dict[str, Tensor]:
    """Return the means of each term over windows of steps, one after the other."""
    return {
        term: torch.stack(
            [
                part.mean()
                for part in torch.tensor([row[term] for row in rows]).split(WINDOW)
            ]
        )
        for term in rows[0]
    }


if __name__ == '__main__':
    raise SystemExit(main())
