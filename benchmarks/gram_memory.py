"""What Gram anchoring adds to the memory of a training step, measured.

    python benchmarks/gram_memory.py --output benchmarks/results/gram_memory.json

Two steps of D-ExPLoRA with a ViT-B/16 of random weights on 8 images of 224 pixels, each
case in its own process: with and without the term, whose anchor sees crops of 448
pixels. The figure is the largest resident memory of the process minus that before the
model was built. The anchor itself, counted in bytes of tensors that it does not share,
is listed next to it.
"""

import argparse
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import torch
from report import Report, header

from torchgeo_explora.adapt import Adaptation, adapt, frozen_base
from torchgeo_explora.augment import MultiCropOptions
from torchgeo_explora.models import ViT
from torchgeo_explora.objectives import DINOv2

MIB = 2**20


def peak() -> float:
    """Return the largest resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(weight: float, found: Any) -> None:
    """Train two steps and put the peak into a queue."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = peak()
    # At this size the base's positions fit; LoRA, block and norms are trained.
    student = ViT('vit_base_patch16_224', image_size=224, weight_init='skip')
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    adapt(student, Adaptation())
    views = MultiCropOptions(96, 2, strength=0.0)
    size = 448 if weight else None
    objective = DINOv2(
        student,
        views.build(224, 16, (0.5,) * 3, (0.25,) * 3, anchor_size=size),
        steps=2,
        prototypes=1024,
        gram_weight=(weight, weight),
    )
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    for number in range(2):
        optimizer.zero_grad()
        terms = objective({'image': torch.rand(8, 3, 224, 224)}, number / 2)
        torch.stack([*terms.values()]).sum().backward()
        optimizer.step()
        objective.after_step(number / 2)
    anchor = frozen_base(student)
    shared = {id(p) for p in student.parameters()}
    own = sum(p.numel() * 4 for p in anchor.parameters() if id(p) not in shared)
    found.put({'peak_mib': round(peak() - before), 'anchor_mib': round(own / MIB, 1)})


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--output', type=Path, required=True)
    options = parser.parse_args()
    context = multiprocessing.get_context('spawn')
    report = Report(
        options.output,
        ('without', 'with'),
        header(torch.device('cpu'), None),
    )

    def measure(record: dict[str, Any], weight: float) -> None:
        queue = context.Queue()
        process = context.Process(target=step, args=(weight, queue))
        process.start()
        record |= queue.get(timeout=900)
        process.join()
        print(weight, record, flush=True)

    for part, weight in (('without', 0.0), ('with', 1.0)):
        report.run(part, lambda record, weight=weight: measure(record, weight))


if __name__ == '__main__':
    main()
