"""What a step costs, part by part, for the ViT-L of the paper and a ViT-B."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from flops import FORMULA, step_flops, utilisation
from projections import compare_projections
from report import NotRunError
from timing import Clock, matmul_rate
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training import TINY, Sizes, build, optimizer_of, train_step

from torchgeo_explora.adapt import count
from torchgeo_explora.models import ViT
from torchgeo_explora.objectives import DINOv2

WARMUP, TIMED = 3, 12


class Model(NamedTuple):
    """A backbone with random weights, and the micro-batches to try."""

    name: str
    micro_batches: tuple[int, ...]
    half_base: bool = False
    arguments: dict[str, Any] = {}
    checkpointing: bool = False
    compiled: bool = False


#: In order of importance: if time is short, the last ones are left out.
MODELS = (
    Model('vit_large_patch14_dinov2', (32, 128)),
    Model('vit_large_patch14_dinov2', (32, 128), half_base=True),
    Model('vit_large_patch14_dinov2', (32,), half_base=True, checkpointing=True),
    Model('vit_giant_patch14_dinov2', (32,), half_base=True, checkpointing=True),
    Model('vit_large_patch14_dinov2', (32,), half_base=True, compiled=True),
    Model('vit_base_patch14_dinov2', (32, 128)),
)
_SMALL = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
TINY_MODELS = (
    Model('vit_small_patch14_dinov2', (4,), arguments=_SMALL),
    Model('vit_small_patch14_dinov2', (4,), True, _SMALL),
    Model('vit_small_patch14_dinov2', (4,), True, _SMALL, checkpointing=True),
)


def run(
    record: dict[str, Any],
    device: torch.device,
    tiny: bool,
    left: Callable[[], float],
    save: Callable[[], None],
) -> None:
    """Fill the part.

    Args:
        record: Gets the results.
        device: Where to measure.
        tiny: Toy sizes.
        left: Seconds that this part may still take.
        save: Writes what is known.
    """
    sizes = TINY if tiny else Sizes()
    record['matmul_bfloat16'] = matmul_rate(device, 256 if tiny else 8192)
    rate = record['matmul_bfloat16']['tflops']
    record |= {
        'what': 'D-[-1]-r64, random weights and random 256-pixel images, bfloat16'
        f' autocast; medians of {TIMED} steps after {WARMUP}, each with an optimizer'
        ' step and a moving average; milliseconds',
        'sizes': sizes._asdict(),
        'flops': FORMULA,
        'mfu': 'those operations over the time of a step and the measured rate of'
        ' matmul_bfloat16',
        'projections': compare_projections(
            device, *((24, 64) if tiny else (1024, 2 * 257 * 32)), torch.bfloat16
        ),
        'runs': {},
    }
    for model in TINY_MODELS if tiny else MODELS:
        name = model.name + (', frozen weights in bfloat16' if model.half_base else '')
        name += ', checkpointing' if model.checkpointing else ''
        name += ', compiled' if model.compiled else ''
        objective = None
        stopped = ''
        for size in model.micro_batches:
            key = f'{name}, micro-batch {size}'
            if not stopped and left() < 20:
                stopped = 'no time left for this part'
            if stopped:
                record['runs'][key] = {'status': 'not run', 'reason': stopped}
                continue
            try:
                objective = objective or _objective(model, sizes, device)
                found = measure(objective, size, sizes, rate, device)
                record['runs'][key] = {'status': 'done'} | found
                if 'kernels' not in record and not model.half_base:
                    record['kernels'] = {'run': key} | kernels(objective, size, device)
            except torch.OutOfMemoryError as error:
                stopped = f'out of memory at micro-batch {size}: {error}'[:200]
                record['runs'][key] = {'status': 'not run', 'reason': stopped}
            release()
            save()
        del objective
        release()
    if not any(found['status'] == 'done' for found in record['runs'].values()):
        raise NotRunError('no size could be measured: see runs')


def _objective(model: Model, sizes: Sizes, device: torch.device) -> DINOv2:
    torch.manual_seed(0)
    student = ViT(model.name, image_size=sizes.image_size, **model.arguments)
    return build(
        student,
        sizes,
        device,
        half_base=model.half_base,
        checkpointing=model.checkpointing,
        compiled=model.compiled,
    )


def measure(
    objective: DINOv2,
    images: int,
    sizes: Sizes,
    rate: float,
    device: torch.device,
    steps: tuple[int, int] = (WARMUP, TIMED),
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Return the cost of steps of *images* images.

    Args:
        objective: What is trained.
        images: B.
        sizes: Sizes of views and head.
        rate: Measured TFLOP/s of a matrix product.
        device: Where the objective is.
        steps: Numbers of steps: first untimed, then timed.
        dtype: Type of autocast; float32 for none.
    """
    warmup, timed = steps
    optimizer = optimizer_of(objective)
    batch = random_images(images, device)
    clock = Clock(device)
    with watch(objective, clock) as rows:
        for number in range(warmup + timed):
            if number == warmup:
                reset_peak(device)
                for counts in rows.values():
                    counts.clear()
                began = time.perf_counter()
            train_step(objective, optimizer, batch, 0.5, clock, dtype)
        parts = clock.milliseconds(skip=warmup)
        wall = 1000 * (time.perf_counter() - began) / timed
    mean = {name: sum(counts) / timed for name, counts in rows.items()}
    trained, base = count(objective.student)
    augment: Any = objective.augment
    operations = step_flops(
        objective.student,  # type: ignore[arg-type]
        objective.head,
        images,
        (augment.global_size, augment.local_size),
        sizes.local_views,
        (mean['student'], mean['teacher']),
    )
    return {
        'milliseconds': parts,
        'wall_milliseconds': round(wall, 3),
        'images_per_second': round(1000 * images / parts['step'], 2),
        'peak_memory_gib': peak(device),
        'reserved_memory_gib': reserved(device),
        'head_rows': mean,
        **utilisation(operations, parts['step'], rate),
        'parameters': {'trained': trained, 'base': base},
    }


@contextmanager
def watch(objective: DINOv2, clock: Clock) -> Iterator[dict[str, list[int]]]:
    """Mark the parts of a forward pass on the clock, with hooks on the modules.

    Marks: augment (with the conversion of the images), masks, teacher, targets (teacher
    head and Sinkhorn-Knopp), student (with its head except the prototypes).

    Yields:
        Rows that the heads saw, 'student' and 'teacher', call by call.
    """
    rows: dict[str, list[int]] = {'student': [], 'teacher': []}
    student: Any = objective.student

    def begin_student(*_: Any) -> None:
        # The patch embedding sees the global views, then the local ones.
        if clock.last == 'teacher':
            clock.mark('targets')

    def end_student(module: Any, inputs: tuple[Tensor], _: Any) -> None:
        rows['student'].append(len(inputs[0]))
        clock.mark('student')

    def count_teacher(module: Any, inputs: tuple[Tensor], _: Any) -> None:
        rows['teacher'].append(len(inputs[0]))

    augment: Any = objective.augment
    handles = [
        augment.register_forward_hook(lambda *_: clock.mark('augment')),
        objective.teacher.register_forward_pre_hook(lambda *_: clock.mark('masks')),
        objective.teacher.register_forward_hook(lambda *_: clock.mark('teacher')),
        objective.teacher_head.register_forward_hook(count_teacher),
        student.patch_embed.proj.register_forward_pre_hook(begin_student),
        objective.head.mlp.register_forward_hook(end_student),
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def kernels(objective: DINOv2, images: int, device: torch.device) -> dict[str, Any]:
    """Return what takes most of the time in a step, and whether attention is fused."""
    optimizer = optimizer_of(objective)
    batch = random_images(images, device)
    on_gpu = device.type == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    train_step(objective, optimizer, batch, 0.5, Clock(device))
    try:
        with profile(activities=activities) as profiler:
            train_step(objective, optimizer, batch, 0.5, Clock(device))
            if on_gpu:
                torch.cuda.synchronize(device)
        key = 'self_device_time_total' if on_gpu else 'self_cpu_time_total'
        events = sorted(
            profiler.key_averages(), key=lambda e: getattr(e, key), reverse=True
        )
    except (RuntimeError, AttributeError) as error:
        return {'status': 'not run', 'reason': f'the profiler failed: {error!r}'}
    attention = {e.key: e.count for e in events if '_scaled_dot_product' in e.key}
    # Operations include the time of their kernels, which are listed separately.
    events = [e for e in events if (e.device_type == DeviceType.CUDA) == on_gpu]
    return {
        'status': 'done',
        'attention': attention,
        'fused': bool(attention) and not any('math' in key for key in attention),
        'all_milliseconds': sum(getattr(e, key) for e in events) / 1000,
        'largest': [
            {
                'name': event.key[:120],
                'calls': event.count,
                'milliseconds': getattr(event, key) / 1000,
            }
            for event in events[:20]
        ],
    }


def random_images(images: int, device: torch.device) -> Tensor:
    """Return (B, 3, 256, 256) uint8 noise."""
    shape = (images, 3, 256, 256)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)


def reset_peak(device: torch.device) -> None:
    """Start measuring the peak of the device's memory."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float | str:
    """Return the peak memory of tensors, in GiB."""
    if device.type != 'cuda':
        return 'not measured: a CPU'
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def reserved(device: torch.device) -> float | str:
    """Return the peak memory of the allocator, which a card must have, in GiB."""
    if device.type != 'cuda':
        return 'not measured: a CPU'
    return round(torch.cuda.max_memory_reserved(device) / 2**30, 2)


def release() -> None:
    """Free memory between measurements."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
