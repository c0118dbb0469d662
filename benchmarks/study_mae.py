r"""How many chips M-ExPLoRA needs: Sentinel-2 in spectral groups, a ViT-Ti, one core.

    OMP_NUM_THREADS=1 python benchmarks/study_mae.py --data data/sentinel2 \
        --weights data/vit_tiny_patch16_224.safetensors --output outputs/study_mae

The folder holds GeoTIFFs of 64 x 64 pixels; a fifth is held out by a hash. Settings are
those of configs/pretrain/sentinel2_group_vit_tiny_cpu.yaml, and each contender changes
what trains. At the steps of `STEPS` the loss on the held-out chips, with the same masks
for all, and the share of the variance of their structure that is explained are appended
to `mae.jsonl` in the output folder. Runs that are there are skipped. `--table` prints
the lines.

The structure of a patch is its normalised pixels without the mean of each band: a
model that has learnt colours alone explains nothing of it.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml
from eurosat_downstream import append, precision, read, trainer
from lightning.pytorch import Callback, Trainer, seed_everything
from peft import LoraConfig
from report import header
from study import Clock
from torch import Tensor
from torch.utils.data import DataLoader

from torchgeo_explora.adapt import count
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import GroupChannelViT
from torchgeo_explora.tasks import ExploraMAETask

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / 'configs' / 'pretrain' / 'sentinel2_group_vit_tiny_cpu.yaml'
STEPS = (100, 250, 500, 1000)
FROZEN: dict[str, Any] = {'unfreeze': (), 'norms': False, 'cls_token': False}
NO_LORA: dict[str, Any] = {'rank': 0, 'alpha': None}
#: What differs from the configuration.
CONTENDERS: dict[str, dict[str, Any]] = {
    'M-[1,12]-r16 on Q, V': {},
    'M-[1,12]-r16 on all': {
        'rank': None,
        'alpha': None,
        'adapter': LoraConfig(r=16, lora_alpha=64, target_modules='all-linear'),
    },
    'M-[1,12]': NO_LORA,
    'embeddings': FROZEN | NO_LORA,
    'full': NO_LORA | {'unfreeze': (), 'modules': ('',), 'base_lr': 4e-3},
}


def explained(predicted: Tensor, true: Tensor) -> float:
    """Return 1 - squared error over squared deviation from the mean of each column."""
    deviation = (true - true.mean(0)).square().mean()
    return 1 - ((predicted - true).square().mean() / deviation).item()


class Keep(Callback):
    """Measure on held-out chips, and append a line.

    Args:
        clock: Knows the time that was spent.
        lines: The file.
        known: What describes the run.
    """

    def __init__(self, clock: Clock, lines: Path, known: dict[str, Any]) -> None:
        """Keep the arguments."""
        self.clock, self.lines, self.known = clock, lines, known

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Measure if it is time."""
        if trainer.global_step in STEPS:
            self._measure(trainer, pl_module)

    @torch.no_grad()
    def _measure(self, trainer: Trainer, task: ExploraMAETask) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        groups: Any = task.backbone.group_indices
        task.eval()
        (batch,) = DataLoader(data.val_dataset, batch_size=len(data.val_dataset))
        view = task.preprocess()(task.known_image({'image': batch['image']}))
        grid = (len(groups), *task.backbone.grid)
        generators = torch.get_rng_state()
        torch.manual_seed(0)
        mask = task.objective.draw_mask(len(view), grid)
        torch.set_rng_state(generators)
        predicted, true = task.objective.reconstruct(view, mask)  # (B, C, h * w, p * p)
        hidden = torch.zeros(predicted.shape[:3], dtype=torch.bool)
        of_group = mask.unflatten(1, (grid[0], -1)).unbind(1)
        for part, bands in zip(of_group, groups, strict=True):
            hidden[:, list(bands)] = part[:, None]
        structures = (x[hidden] - x[hidden].mean(-1, True) for x in (predicted, true))
        row = {
            'step': trainer.global_step,
            'images': trainer.global_step * data.batch_size,
            'cpu_seconds': round(self.clock.spent, 1),
            'loss': round(task.objective.loss(view, mask).item(), 5),
            'structure': round(explained(*structures), 4),
        }
        task.train()
        print(self.known['run'], self.known['seed'], row, flush=True)
        append(self.lines, self.known | row)


def run(name: str, seed: int, data: Path, weights: str, output: Path) -> None:
    """Train a contender, unless it is there."""
    # A run of `study.py` may have the same name.
    folder = output / 'mae' / f'{name}-{seed}'
    if (folder / 'done').exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(CONFIG.read_text())
    given = config['model']['init_args'] | {'weights': weights, 'seed': seed}
    seed_everything(seed, verbose=False)
    model = GroupChannelViT(**given.pop('model')['init_args'])
    task = ExploraMAETask(model, **(given | CONTENDERS[name]))
    known = {
        'run': name,
        'seed': seed,
        'commit': header(torch.device('cpu'), None)['commit'],
        'precision': precision(),
        'trained': count(task.objective.student)[0],
    }
    clock = Clock()
    keep = Keep(clock, output / 'mae.jsonl', known)
    trainer(folder, STEPS[-1], clock, keep).fit(
        task, ImageFolderDataModule(data, val_fraction=0.2, batch_size=16)
    )
    (folder / 'done').touch()


def table(path: Path) -> str:
    """Return loss and structure explained by chips seen, as Markdown."""
    of_run: dict[str, list[dict[str, Any]]] = {}
    for row in read(path):
        of_run.setdefault(row['run'], []).append(row)
    seen = [16 * step for step in STEPS]
    columns = [f'{kind} at {n:,}' for kind in ('loss', 'structure') for n in seen]
    head = ' | '.join(['trained', 'parameters', 'seeds', *columns, 'minutes'])
    lines = [f'| {head} |', '|' + '---|' * (4 + len(columns))]
    for name, found in of_run.items():
        last = [row for row in found if row['step'] == STEPS[-1]]
        cells = [f'{found[0]["trained"] / 1e6:.2f} M', str(len(last))]
        for kind in ('loss', 'structure'):
            for step in STEPS:
                values = [row[kind] for row in found if row['step'] == step]
                cells.append(f'{statistics.mean(values):.3f}')
        minutes = statistics.mean(row['cpu_seconds'] for row in last) / 60
        lines.append(f'| {name} | {" | ".join(cells)} | {minutes:.1f} |')
    return '\n'.join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', type=Path)
    parser.add_argument('--weights')
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--table', action='store_true', help='print the table alone')
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        for seed in options.seeds:
            for name in CONTENDERS:
                run(name, seed, options.data, options.weights, options.output)
    print(table(options.output / 'mae.jsonl'))


if __name__ == '__main__':
    main()
