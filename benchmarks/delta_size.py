"""Size of a delta and of a checkpoint, and the time to write, load and merge them.

    OMP_NUM_THREADS=1 python benchmarks/delta_size.py

builds a DINOv2 ViT-L/14 with random values (no measurement here depends on them), gives
it the paper's delta D-[24]-r64 and writes both forms of the result: the delta, and the
merged float32 weights. Then one optimizer step of `ExploraDinoTask` at a small image
size makes the state that a checkpoint holds. It is written as the task does it, and
whole: student, teacher, heads, and AdamW's two moments of all that would train without
an adapter. Needs some 8 GiB of memory and 8 GB on disk.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from report import Report, header
from safetensors.torch import save_file

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    count,
    load_delta,
    merged,
    save_delta,
)
from torchgeo_explora.datamodules import SyntheticScenesDataModule
from torchgeo_explora.export import export_timm
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraDinoTask

PARTS = ('delta', 'checkpoint')
MODEL = 'vit_large_patch14_dinov2'
TINY = {'embed_dim': 48, 'depth': 4, 'num_heads': 2}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure both parts and return the file of results."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    default = Path(__file__).parent / 'results' / 'delta_size.json'
    parser.add_argument('--output', type=Path, default=default)
    parser.add_argument('--commit', help='where git cannot tell')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--tiny', action='store_true', help='toy size, for tests')
    given = parser.parse_args(arguments)
    warnings.filterwarnings('ignore')
    sizes = TINY if given.tiny else {}
    about = header(torch.device('cpu'), given.commit) | {
        'model': MODEL,
        'sizes': sizes,
        'load_average': os.getloadavg(),
    }
    report = Report(given.output, PARTS, about)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        report.run('delta', lambda r: _delta(r, place, sizes, given.repeats))
        report.run('checkpoint', lambda r: _checkpoint(r, place, sizes, given.repeats))
    return given.output


def _delta(record: dict[str, Any], place: Path, sizes: Any, repeats: int) -> None:
    base = place / 'base.safetensors'
    options = {'image_size': 28 if sizes else 224, **sizes}
    plain = ViT(MODEL, **options)
    save_file(
        {k: v.contiguous() for k, v in plain.canonical_state_dict().items()}, base
    )
    backbone = adapt(ViT(MODEL, base, **options), Adaptation())
    trained, size = count(backbone)
    record |= {'parameters': size, 'trained': trained}
    delta, whole = place / 'delta.safetensors', place / 'merged.safetensors'
    seconds = {
        'write the delta': _timed(lambda: save_delta(backbone, delta), repeats),
        'build the base': _timed(lambda: ViT(MODEL, base, **options), repeats),
    }
    backbones = [ViT(MODEL, base, **options) for _ in range(repeats)]
    seconds['load the delta'] = _timed(
        lambda: load_delta(backbones.pop(), delta), repeats
    )
    seconds['merge'] = _timed(lambda: merged(backbone), repeats)
    seconds['merge and write'] = _timed(lambda: export_timm(backbone, whole), repeats)
    sizes_of = {'delta': delta.stat().st_size, 'merged': whole.stat().st_size}
    record |= {
        'bytes': sizes_of,
        'share': sizes_of['delta'] / sizes_of['merged'],
        'times': seconds,
    }
    whole.unlink()
    delta.unlink()


def _checkpoint(record: dict[str, Any], place: Path, sizes: Any, repeats: int) -> None:
    ours, full = place / 'ours.ckpt', place / 'full.ckpt'
    state, seconds = _trained(ours, place / 'base.safetensors', sizes, repeats)
    trains = [value for name, value in state.items() if 'teacher' not in name]
    moments = {
        index: {'exp_avg': value.clone(), 'exp_avg_sq': value.clone()}
        for index, value in enumerate(trains)
    }
    content = {'state_dict': state, 'optimizer_states': [{'state': moments}]}
    whole = _timed(lambda: torch.save(content, full), repeats)
    kept = {'ours': ours.stat().st_size, 'full': full.stat().st_size}
    record |= {
        'bytes': kept | {'delta': ours.with_suffix('.safetensors').stat().st_size},
        'share_of_size': kept['ours'] / kept['full'],
        # Ours by `Trainer.save_checkpoint`, the delta included; the full one by
        # `torch.save` alone, which is quicker than a trainer that trains all.
        'times': {'ours': seconds, 'full': whole},
        'share_of_time': seconds['seconds'] / whole['seconds'],
        'share_of_processor_time': seconds['processor'] / whole['processor'],
    }


def _trained(
    path: Path, base: Path, sizes: Any, repeats: int
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Write a task's checkpoint; return all its weights, and the seconds it took."""
    small = {'prototypes': 64, 'hidden_dim': 32, 'bottleneck_dim': 8}
    task = ExploraDinoTask(
        model=MODEL,
        weights=str(base),
        # The size of the images is in no weight but the position table.
        image_size=28,
        local_size=14,
        local_views=1,
        model_args=sizes or None,
        **(small if sizes else {}),
    )
    trainer = Trainer(
        accelerator='cpu',
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path.parent / 'run',
    )
    data = SyntheticScenesDataModule(num_train=2, num_val=2, num_test=2, batch_size=2)
    trainer.fit(task, data)
    seconds = _timed(lambda: trainer.save_checkpoint(path), repeats)
    state = {
        # torch.save writes tensors that share memory once: each gets its own.
        name: value.clone()
        for name, value in task.state_dict().items()
        if 'lora_' not in name
    }
    return state, seconds


def _timed(action: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return medians of the wall time and of the processor's, in seconds, and a range.

    The processor's time is the better one where other work runs beside; it holds what
    the system does to copy bytes to a file, not the wait for a disk.
    """
    walls, busy = [], []
    for _ in range(repeats):
        begin = time.perf_counter(), time.process_time()
        action()
        walls.append(time.perf_counter() - begin[0])
        busy.append(time.process_time() - begin[1])
    return {
        'seconds': round(statistics.median(walls), 4),
        'least': round(min(walls), 4),
        'most': round(max(walls), 4),
        'processor': round(statistics.median(busy), 4),
    }


if __name__ == '__main__':
    main()
