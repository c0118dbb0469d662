r"""10-NN accuracy on the test split of what each run of the study ends with.

    OMP_NUM_THREADS=1 python benchmarks/study_test_split.py --data data/eurosat_rgb \
        --weights data/vit_tiny_patch16_224.safetensors --output outputs/study

The bank is the whole training split, and nothing is chosen here: the last delta of each
run of `TIME`, `IMAGES` and `OTHERS` counts. Each line of `test.jsonl` in the output
folder has which of the test images were classified correctly, as hexadecimal digits,
image by image, so that two runs can be compared on the same images. Lines that are
there are skipped. Beside the runs themselves, the means of *short*, *full* and
*lora alone* over their seeds are judged, where there are three.

With another data folder, the same deltas are judged on images that they never saw:

    OMP_NUM_THREADS=1 python benchmarks/study_test_split.py --data data/rsscn7 \
        --weights data/vit_tiny_patch16_224.safetensors --output outputs/study \
        --lines rsscn7.jsonl

Runs of another base or size are named, those of one base and size at a time:

    OMP_NUM_THREADS=1 python benchmarks/study_test_split.py --data data/eurosat_rgb \
        --weights data/dinov2_small_focus.safetensors --output outputs/study \
        --lines test_dinov2.jsonl --only 'DINOv2 ViT-S' 'DINOv2 ViT-S, full'
"""

import argparse
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eurosat_downstream import append, read
from report import header
from study_contenders import COMMON, CONTENDERS, IMAGES, OTHERS, TIME
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from torchgeo_explora.adapt import average_deltas
from torchgeo_explora.functional import knn_vote
from torchgeo_explora.tasks import ExploraKNNTask


def images(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the images of a split, (N, 3, S, S) uint8, and their labels, (N,)."""
    found = ImageFolder(folder)
    pixels = [pil_to_tensor(found.loader(path)) for path, _ in found.samples]
    return torch.stack(pixels), torch.tensor(found.targets)


@torch.no_grad()
def features(task: ExploraKNNTask, pixels: Tensor) -> Tensor:
    """Return L2-normalised embeddings, (N, D)."""
    views = (task.view(part.float() / 255) for part in pixels.split(250))
    return normalize(
        torch.cat([task.backbone(v).pooled(task.pooling) for v in views]), dim=1
    )


def last_deltas(
    output: Path, names: Container[str]
) -> Iterator[tuple[str, int, Path | None]]:
    """Yield run, seed and file of the base, of finished runs, and of means of runs.

    Args:
        output: Folder of the study.
        names: Runs to yield.
    """
    yield 'base', 0, None
    alike: dict[str, list[Path]] = {
        name: [] for name in ('short', 'full', 'lora alone')
    }
    for folder in sorted(path.parent for path in output.glob('*/done')):
        name, _, seed = folder.name.rpartition('-')
        if name in names:
            delta = max(folder.glob('[0-9]*.safetensors'))
            yield name, int(seed), delta
            if name in alike:
                alike[name].append(delta)
    for name, deltas in alike.items():
        if len(deltas) == 3:
            mean = output / f'mean_of_{name}.safetensors'
            average_deltas(deltas, mean)
            yield f'mean of 3 seeds of {name}', 0, mean


def main() -> None:
    """Judge what was not judged."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', required=True)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--lines', default='test.jsonl', help='name of the file')
    parser.add_argument(
        '--only', nargs='+', choices=CONTENDERS, default=[*TIME, *IMAGES, *OTHERS]
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = COMMON | CONTENDERS[options.only[0]].settings
    for name in options.only:
        other = COMMON | CONTENDERS[name].settings
        if any(other[key] != settings[key] for key in ('model', 'image_size')):
            parser.error(f'{name!r} has another base or size than {options.only[0]!r}')
    lines = options.output / options.lines
    known = {(row['run'], row['seed']) for row in read(lines)}
    bank, labels = images(options.data / 'train')
    queries, truth = images(options.data / 'test')
    for name, seed, delta in last_deltas(options.output, options.only):
        if (name, seed) in known:
            continue
        task = ExploraKNNTask(
            model=settings['model'],
            weights=options.weights,
            delta=delta,
            image_size=settings['image_size'],
        ).eval()
        votes = knn_vote(
            *(features(task, bank), labels, features(task, queries)),
            k=10,
            num_classes=int(labels.max()) + 1,
        )
        right = (votes.argmax(1) == truth).numpy()
        row: dict[str, Any] = {
            'run': name,
            'seed': seed,
            'commit': header(torch.device('cpu'), None)['commit'],
            'accuracy': round(float(right.mean()), 4),
            'images': len(right),
            'right': np.packbits(right).tobytes().hex(),
        }
        print(name, seed, row['accuracy'], flush=True)
        append(lines, row)


if __name__ == '__main__':
    main()
