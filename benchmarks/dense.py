"""Speed and memory of segmentation and detection.

    OMP_NUM_THREADS=1 python benchmarks/dense.py --output benchmarks/results/dense.json

Every decoder and detector, as the tasks build them, on a backbone with LoRA of rank 8:
medians of training steps (optimizer included) and of prediction, on images drawn at
random. Weights are random; an untrained detector makes more proposals than a trained
one. On a CPU, time is the CPU time of the process, whatever else runs, and memory is
the peak of the process with all its libraries (Linux); on an accelerator, memory is the
peak of tensors.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from report import Report, header
from steps import peak, release, reset_peak
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datamodules.utils import collate_fn_detection

from torchgeo_explora.tasks import ExploraDetectionTask, ExploraSegmentationTask

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        name: (ExploraSegmentationTask, {'decoder': name})
        for name in ('upernet', 'dpt', 'linear')
    },
    **{
        name: (ExploraDetectionTask, {'detector': name})
        for name in ('faster-rcnn', 'fcos')
    },
}
CLASSES = 5
#: Steps at the start that are not counted.
SKIP = 2


class Drawn(NonGeoDataModule):
    """The same random images over and over, with a mask and ten boxes each."""

    def __init__(self, batch_size: int, batches: int, side: int, boxes: bool) -> None:
        """Draw one batch."""
        super().__init__(object, batch_size)
        self.mean, self.std = torch.tensor(0.0), torch.tensor(255.0)
        corner = torch.rand(batch_size, 10, 2) * side / 2
        far = corner + side / 8 + torch.rand(batch_size, 10, 2) * side / 4
        of_each = {
            'image': torch.rand(batch_size, 3, side, side) * 255,
            'mask': torch.randint(CLASSES, (batch_size, side, side)),
            'bbox_xyxy': torch.cat([corner, far], dim=-1),
            'label': torch.randint(1, CLASSES, (batch_size, 10)),
        }
        if boxes:
            self.collate_fn = collate_fn_detection
        keys = ('image', 'bbox_xyxy', 'label') if boxes else ('image', 'mask')
        batch = [{k: of_each[k][i] for k in keys} for i in range(batch_size)]
        self.train_dataset = self.predict_dataset = batch * batches

    def setup(self, stage: str) -> None:
        """Do nothing: the batch is in memory."""


class StepClock(Callback):
    """Seconds of each batch of a run, of the process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        """Start without any batch."""
        self.device = device
        self.seconds: list[float] = []
        cuda = device.type == 'cuda'
        self._now = time.perf_counter if cuda else time.process_time

    def _start(self, *_: Any) -> None:
        self._wait()
        self._began = self._now()

    def _end(self, *_: Any) -> None:
        self._wait()
        self.seconds.append(self._now() - self._began)

    def _wait(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    on_train_batch_start = on_predict_batch_start = _start
    on_train_batch_end = on_predict_batch_end = _end


def measure(
    record: dict[str, Any],
    kind: Any,
    arguments: dict[str, Any],
    options: argparse.Namespace,
    folder: str,
) -> None:
    """Train and predict with one task, and record time and memory.

    Args:
        record: Gets the results.
        kind: The task's class.
        arguments: Its arguments that differ from case to case.
        options: Options of the command line.
        folder: Where the task writes its predictions.
    """
    device = torch.device(options.device)
    seed_everything(0, verbose=False)
    task = kind(
        num_classes=CLASSES,
        model=options.model,
        weights=None,
        image_size=options.image_size,
        **arguments,
    )
    record['trained'] = sum(p.numel() for p in task.parameters() if p.requires_grad)
    record['parameters'] = sum(p.numel() for p in task.parameters())
    boxes = kind is ExploraDetectionTask
    batches = options.steps + SKIP
    data = Drawn(options.batch_size, batches, options.image_size, boxes)
    for stage in ('fit', 'predict'):
        release()
        _begin(device)
        clock = StepClock(device)
        trainer = Trainer(
            accelerator='gpu' if device.type == 'cuda' else 'cpu',
            devices=1,
            precision=options.precision,
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            callbacks=[clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        getattr(trainer, stage)(task, data)
        seconds = statistics.median(clock.seconds[SKIP:])
        record[stage] = {
            'milliseconds': round(1000 * seconds, 1),
            'images_per_second': round(options.batch_size / seconds, 2),
            'peak_gib': _peak(device),
        }


def _begin(device: torch.device) -> None:
    reset_peak(device)
    if device.type != 'cuda':
        # This resets the kernel's high-water mark.
        Path('/proc/self/clear_refs').write_text('5')


def _peak(device: torch.device) -> float | str:
    if device.type == 'cuda':
        return peak(device)
    status = Path('/proc/self/status').read_text().splitlines()
    (line,) = (line for line in status if line.startswith('VmHWM'))
    return round(int(line.split()[1]) / 2**20, 2)


def main(arguments: list[str] | None = None) -> int:
    """Measure every case, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--output', type=Path, required=True, help='JSON file')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--precision', default='bf16-mixed')
    parser.add_argument('--model', default='vit_tiny_patch16_224', help='name in timm')
    parser.add_argument('--image-size', type=int, default=224, help='pixels')
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--steps', type=int, default=5, help='to count')
    parser.add_argument('--cases', nargs='+', default=[*CASES], choices=[*CASES])
    options = parser.parse_args(arguments)
    warnings.filterwarnings('ignore')
    settings = {k: v for k, v in vars(options).items() if k not in ('output', 'cases')}
    about = header(torch.device(options.device), None) | {'settings': settings}
    report = Report(options.output, tuple(options.cases), about)
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            kind, own = CASES[case]
            measured = partial(
                measure, kind=kind, arguments=own, options=options, folder=folder
            )
            report.run(case, measured)
    return int(any(report.content[case]['status'] != 'done' for case in options.cases))


if __name__ == '__main__':
    sys.exit(main())
