"""What a run costs on paper: operations and bytes, computed from sizes, not measured.

    python benchmarks/paper_cost.py

counts parameters of models without values and applies the formulas of
`docs/performance.md`: D-[-1]-r64, 2 x 224 + 8 x 98 pixels, 65,536 prototypes, under
bf16-mixed with frozen weights in bfloat16. No allocator, library or kernel is in them.
Operations of M-[1,24]-r32 on fMoW-Sentinel are counted by torch in a step of one image.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flops import counter, step_flops
from report import Report, header
from training import Sizes

from torchgeo_explora.adapt import Adaptation, adapt, count, lora
from torchgeo_explora.models import DINOHead, GroupChannelViT, ViT
from torchgeo_explora.objectives import MAE

SIZES = Sizes()
LOCAL = 98
#: Masked patches of an image: half of two crops, 30 % of 256 patches each, on average.
MASKED = 76
MODELS = ('vit_base', 'vit_large', 'vit_giant')
BATCHES = (8, 16, 32, 64, 128)
#: Bytes that a block keeps for the gradient, per token and channel, and with
#: checkpointing; of what trains (weights, gradients, two moments, the teacher's).
KEPT, INPUT, TRAINED = 26, 4, 20
#: Slices of logits.
SLICES = 0.2 * 2**30
#: The paper's run, and that of configs/pretrain/fmow_sentinel_mae_vit_large.yaml.
STEPS, IMAGES = 6250, 1024
MASKED_STEPS = 34800
GIB = 2**30


def cost(name: str) -> dict[str, Any]:
    """Return GiB of memory and operations of a model.

    Args:
        name: Start of timm's name of a DINOv2 model.
    """
    with torch.device('meta'):
        backbone = ViT(f'{name}_patch14_dinov2', image_size=SIZES.image_size)
        adapt(backbone, Adaptation(adapter=lora(64)))
        widths = (SIZES.prototypes, SIZES.hidden_dim, SIZES.bottleneck_dim)
        head = DINOHead(backbone.embed_dim, *widths)
    delta, base = count(backbone)
    frozen = sum(p.numel() for p in backbone.parameters() if not p.requires_grad)
    trained = delta + sum(p.numel() for p in head.parameters())
    # Of unit length, and their gradient by each of three losses.
    unit = 4 * 4 * SIZES.prototypes * SIZES.bottleneck_dim
    fixed = 2 * frozen + TRAINED * trained + unit + SLICES
    tokens = sum(
        views * (1 + (side // backbone.patch_size) ** 2)
        for views, side in ((2, SIZES.image_size), (SIZES.local_views, LOCAL))
    )
    # The last block works for a tenth of them.
    block = tokens * backbone.embed_dim
    blocks = block * (len(backbone.blocks) - 1)
    targets = (MASKED + 2) * SIZES.prototypes * 4
    whole = {n: fixed + n * (KEPT * blocks + targets) for n in BATCHES}
    saved = {n: fixed + n * (INPUT * blocks + KEPT * block + targets) for n in BATCHES}
    operations = step_flops(
        backbone,
        head,
        1,
        (SIZES.image_size, LOCAL),
        SIZES.local_views,
        (2 + MASKED + SIZES.local_views, 2 + MASKED),
    )
    return {
        'parameters': {'base': base, 'frozen': frozen, 'delta and head': trained},
        'tflop_per_image': round(operations / 1e12, 3),
        'operations_of_the_run': float(f'{operations * STEPS * IMAGES:.3g}'),
        # Divide by the TFLOP/s that a GPU reaches, and by the GPUs' number for hours.
        'gpu_hours_times_tflops': round(operations * STEPS * IMAGES / 3.6e15),
        'gib': {
            'fixed': round(fixed / GIB, 2),
            'per image': round((KEPT * blocks + targets) / GIB, 3),
            'per image, checkpointing': round(
                (INPUT * blocks + KEPT * block + targets) / GIB, 3
            ),
            'at micro-batch': {n: round(value / GIB, 1) for n, value in whole.items()},
            'at micro-batch, checkpointing': {
                n: round(value / GIB, 1) for n, value in saved.items()
            },
        },
    }


def masked_cost(**sizes: int) -> dict[str, Any]:
    """Return the operations of MAE on a group-channel ViT-L.

    Args:
        **sizes: Of another backbone: `embed_dim`, `depth`, `num_heads`.
    """
    large = {'embed_dim': 1024, 'depth': 24, 'num_heads': 16}
    backbone = GroupChannelViT(**large | sizes)
    adapt(backbone, Adaptation((0, -1), adapter=lora(32), modules=backbone.scratch))
    objective = MAE(backbone)
    # As from MAE's weights, whose layer of pixels is another one.
    adapt(
        objective.decoder,
        Adaptation((), cls_token=False, adapter=lora(32), modules=('pred',)),
    )
    side, _ = backbone.image_size
    with counter() as operations:
        terms = objective({'image': torch.rand(1, backbone.in_channels, side, side)}, 0)
        sum(terms.values()).backward()
    found = operations.get_total_flops()
    return {
        'tflop_per_image': round(found / 1e12, 3),
        'operations_of_the_run': float(f'{found * MASKED_STEPS * IMAGES:.3g}'),
        'gpu_hours_times_tflops': round(found * MASKED_STEPS * IMAGES / 3.6e15),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file of results."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    default = Path(__file__).parent / 'results' / 'paper_cost.json'
    parser.add_argument('--output', type=Path, default=default)
    parser.add_argument('--commit', help='where git cannot tell')
    options = parser.parse_args(arguments)
    about = {'what': 'computed from sizes, not measured on any machine'}
    about |= header(torch.device('cpu'), options.commit)
    report = Report(options.output, (*MODELS, 'masked'), about)
    for name in MODELS:
        report.run(name, lambda record, n=name: record.update(cost(n)))
    report.run('masked', lambda record: record.update(masked_cost()))
    parts = [report.content[name] for name in (*MODELS, 'masked')]
    print(*parts, sep='\n')
    return int(any(part['status'] != 'done' for part in parts))


if __name__ == '__main__':
    raise SystemExit(main())
