"""One contender of the CPU benchmark, in its own process: prints JSON.

python benchmarks/contenders.py explora_float32 --images 8
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import plain_port
import steps
import torch
from checkpoints import write_times
from masked import ExploraMAE, LightlyMAE, measure_masked
from projections import compare_projections
from timing import matmul_rate
from torch import nn
from training import TINY, Sizes, build
from views import batched_views, pil_views

from torchgeo_explora.models import ViT

CPU = torch.device('cpu')
MODEL = 'vit_small_patch14_dinov2'
SMALL = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}


class Setting(argparse.Namespace):
    """Settings that all contenders share."""

    images: int
    steps: tuple[int, int]
    tiny: bool

    def rate(self, dtype: torch.dtype) -> float:
        """Measure a matrix product, in TFLOP/s."""
        return matmul_rate(CPU, 256 if self.tiny else 1536, dtype)['tflops']


def explora(
    setting: Setting, dtype: torch.dtype, half_base: bool, checkpointing: bool = False
) -> dict[str, Any]:
    """Measure our DINOv2 step."""
    sizes = TINY if setting.tiny else Sizes()
    arguments = SMALL if setting.tiny else {}
    student = ViT(MODEL, image_size=sizes.image_size, **arguments)
    objective = build(
        student, sizes, CPU, half_base=half_base, checkpointing=checkpointing
    )
    rate = setting.rate(dtype)
    found = steps.measure(
        objective, setting.images, sizes, rate, CPU, setting.steps, dtype
    )
    return found | {'matmul_tflops': rate}


def port(setting: Setting, dtype: torch.dtype, lora: bool) -> dict[str, Any]:
    """Measure the step from lightly's parts."""
    sizes = TINY if setting.tiny else Sizes()
    arguments = SMALL if setting.tiny else {}
    yardstick = plain_port.PlainPort(MODEL, sizes, lora, **arguments)
    rate = setting.rate(dtype)
    found = plain_port.measure(
        yardstick, setting.images, sizes, rate, CPU, setting.steps, dtype
    )
    return found | {'matmul_tflops': rate}


def masked(setting: Setting, kind: type[nn.Module]) -> dict[str, Any]:
    """Measure a step of a masked autoencoder, with four times the images."""
    rate = setting.rate(WHOLE)
    model = kind(setting.tiny)
    found = measure_masked(model, 4 * setting.images, rate, setting.steps)
    return found | {'matmul_tflops': rate}


def checkpoint(setting: Setting) -> dict[str, Any]:
    """Write the checkpoint of a run and a whole one."""
    with TemporaryDirectory() as folder:
        return write_times(folder, setting.tiny)


def projections(setting: Setting) -> dict[str, Any]:
    """Compare fused and split projections of a ViT-S, of two crops of each image."""
    tokens = 2 * 257 * setting.images
    return {
        str(dtype): compare_projections(CPU, 384, tokens, dtype)
        for dtype in (WHOLE, HALF)
    }


HALF, WHOLE = torch.bfloat16, torch.float32
CONTENDERS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    'explora_float32': partial(explora, dtype=WHOLE, half_base=False),
    'lightly_float32': partial(port, dtype=WHOLE, lora=False),
    'explora_bfloat16': partial(explora, dtype=HALF, half_base=True),
    'peft_float32': partial(port, dtype=WHOLE, lora=True),
    'lightly_bfloat16': partial(port, dtype=HALF, lora=False),
    'explora_float32_checkpointing': partial(
        explora, dtype=WHOLE, half_base=False, checkpointing=True
    ),
    'mae_explora': partial(masked, kind=ExploraMAE),
    'mae_lightly': partial(masked, kind=LightlyMAE),
    'views_batched': lambda s: batched_views(s.tiny),
    'views_pil': lambda s: pil_views(s.tiny),
    'checkpoint': checkpoint,
    'projections': projections,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('name', choices=CONTENDERS)
    add('--images', type=int, default=8, help='in a step')
    add('--steps', type=int, nargs=2, default=(1, 1), help='untimed, then timed')
    add('--tiny', action='store_true', help='toy sizes')
    setting = parser.parse_args(arguments, Setting())
    setting.steps = tuple(setting.steps)
    torch.manual_seed(0)
    before = resident()
    began = time.perf_counter()
    found = CONTENDERS[setting.name](setting)
    found['peak_memory_gib'] = round(resident() - before, 3)
    found['seconds'] = round(time.perf_counter() - began, 1)
    print(json.dumps(found))
    return 0


def resident() -> float:
    """Return the peak memory of the process, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == '__main__':
    raise SystemExit(main())
