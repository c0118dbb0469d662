"""Memory of a configuration of `ExploraDinoTask`, computed from sizes, not measured.

    python benchmarks/memory.py configs/pretrain/fmow_rgb_dinov3_vit_7b.yaml

builds the task without values and applies the formulas of `docs/performance.md`. They
leave out the allocator, libraries and kernels.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from torchgeo_explora.tasks import ExploraDinoTask

GIB = 2**30
#: Bytes per trained parameter: weight, gradient, two moments, and the teacher's weight.
TRAINED = 20
#: Slices of logits.
SLICES = 0.2 * GIB
#: Share of an image's global patches whose targets are kept: half of the crops are
#: masked, 30 % of each on average.
MASKED = 0.15


def kept_by_block(block: Any, width: int) -> int:
    """Return the bytes that a block keeps per token for the gradient, in bfloat16.

    Two norm inputs in float32; q, k, v, attention and its projection; the hidden layer
    before its activation, in a gated MLP also the gate and their product; with rotary
    positions, q and k once more.

    Args:
        block: A block of timm.
        width: D.
    """
    mlp = block.mlp
    hidden = mlp.fc2.in_features
    gated = hasattr(mlp, 'fc1_g') or mlp.fc1.out_features == 2 * hidden
    rotated = 2 if hasattr(block.attn, 'rotate_half') else 0
    return 8 * width + 2 * (5 + rotated) * width + 2 * (3 if gated else 1) * hidden


def memory(task: ExploraDinoTask, batch: int) -> dict[str, float]:
    """Return GiB of a step: the fixed part, what each image adds, and the total.

    Args:
        task: Built, on any device.
        batch: Images of a micro-batch.
    """
    objective = task.objective
    student = objective.student
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    frozen = sum(
        p.numel() * p.element_size()
        for p in student.parameters()
        if not p.requires_grad
    )
    prototypes = objective.head.prototypes.direction.numel()
    # Prototypes of unit length, and their gradient from each of three losses.
    fixed = frozen + TRAINED * trained + 4 * 4 * prototypes + SLICES
    special = student.prefix().shape[1]
    views: Any = objective.augment
    sizes = (2, views.global_size), (views.local_views, views.local_size)
    grid = {side: (side // student.patch_size) ** 2 for _, side in sizes}
    tokens = sum(n * (special + student.layers * grid[side]) for n, side in sizes)
    width, depth = student.embed_dim, len(student.blocks)
    block = tokens * kept_by_block(student.blocks[0], width)
    # The last block computes a tenth of the tokens.
    activations = (depth - 1) * block
    if student.checkpointing:
        activations = (depth - 1) * 4 * width * tokens + block
    masked = round(2 * MASKED * student.layers * grid[views.global_size])
    targets = (masked + 2) * objective.options.prototypes * 4
    image = activations + targets
    parts = {'fixed': fixed, 'per image': image, 'all': fixed + batch * image}
    return {name: round(size / GIB, 2) for name, size in parts.items()}


def of_configuration(path: Path) -> dict[str, float]:
    """Return GiB of a step of a configuration, on one device.

    Args:
        path: A file whose model is an `ExploraDinoTask` with a timm model by name.
    """
    config = yaml.safe_load(path.read_text())
    arguments = config['model']['init_args'] | {'weights': None}
    with torch.device('meta'):
        task = ExploraDinoTask(**arguments)
    return memory(task, config['data']['init_args']['batch_size'])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the memory of each configuration."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('configs', type=Path, nargs='+')
    for path in parser.parse_args(arguments).configs:
        print(path, of_configuration(path))


if __name__ == '__main__':
    main()
