"""The cost of writing a checkpoint: ours, and that of a run that trains everything."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor
from torch.optim import Optimizer
from training import TINY, Sizes, build, optimizer_of

from torchgeo_explora.adapt import delta_state_dict, save_delta
from torchgeo_explora.models import ViT
from torchgeo_explora.objectives import DINOv2
from torchgeo_explora.tasks.run.checkpoint import DeltaCheckpointIO

#: How often the small files are written. The large ones are written once: more would
#: wait for the disk.
REPEATS = 3


def write_times(folder: str, tiny: bool) -> dict[str, Any]:
    """Write three files of a ViT-L's run, and one of a run that trains everything.

    Args:
        folder: Where the files go.
        tiny: Toy sizes.

    Returns:
        Seconds and MiB of 'delta' (the product), 'resumable' (delta, heads, teacher,
        AdamW's moments, as the tasks write them: with the delta beside), 'backbone' (a
        whole ViT-L), and 'resumable_whole' (student, teacher, heads, moments of all).
        The last two are written by plain `torch.save`, the quickest way. 'contents'
        breaks down the MiB of 'resumable'.
    """
    sizes = TINY if tiny else Sizes()
    small = {'embed_dim': 24, 'depth': 2, 'num_heads': 2} if tiny else {}
    model = 'vit_large_patch14_dinov2'
    student = ViT(model, image_size=sizes.image_size, **small)
    whole = _plain(student.state_dict())
    objective = build(student, sizes, torch.device('cpu'))
    optimizer = optimizer_of(objective)
    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    heads = _plain(objective.head.state_dict())
    everything = [*whole.values(), *heads.values()]
    keep = partial(save_delta, objective.teacher)
    resumable = {
        'state_dict': delta_state_dict(objective),
        'optimizer': optimizer.state_dict(),
    }
    as_tasks_do = DeltaCheckpointIO(TorchCheckpointIO(), keep).save_checkpoint
    # The moments are as large as the parameters they belong to.
    resumable_whole = [everything, *_copies(everything)]
    writers: dict[str, Callable[[Path], object]] = {
        'delta': keep,
        'resumable': partial(as_tasks_do, resumable),
        'backbone': partial(torch.save, whole),
        'resumable_whole': partial(torch.save, resumable_whole),
    }
    found = {
        name: _timed(Path(folder), write, 1 if 'whole' in name else REPEATS)
        for name, write in writers.items()
    }
    return {
        'files': found,
        'contents': contents(objective, resumable['state_dict'], optimizer),
        'delta_over_backbone': _ratio(found, 'delta', 'backbone'),
        'resumable_over_whole': _ratio(found, 'resumable', 'resumable_whole'),
    }


def contents(
    objective: DINOv2, state: Mapping[str, Tensor], optimizer: Optimizer
) -> dict[str, float]:
    """Return the MiB of each kind of tensor in a checkpoint."""
    mib: dict[str, int] = {}

    def add(kind: str, tensor: Tensor) -> None:
        mib[kind] = mib.get(kind, 0) + tensor.nbytes

    kinds = {
        'student': 'delta',
        'teacher': "teacher's delta",
        'head': 'head',
        'teacher_head': "teacher's head",
    }
    for name, tensor in state.items():
        add(kinds.get(name.partition('.')[0], 'other'), tensor)
    heads = {id(parameter) for parameter in objective.head.parameters()}
    for parameter, moments in optimizer.state.items():
        kind = f'moments of {"head" if id(parameter) in heads else "delta"}'
        for moment in moments.values():
            add(kind, moment)
    return {kind: round(size / 2**20, 2) for kind, size in mib.items()}


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in state.items()}


def _copies(tensors: list[Tensor]) -> list[list[Tensor]]:
    # Teacher and two moments; a file would hold tensors of the same storage only once.
    return [[t.clone() for t in tensors] for _ in range(3)]


def _timed(
    place: Path, write: Callable[[Path], object], repeats: int
) -> dict[str, float]:
    """Return the median time that *write* takes, and the size of its file."""
    file = place / 'part.ckpt'
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        write(file)
        seconds.append(time.perf_counter() - began)
        size = file.stat().st_size / 2**20
        for made in place.iterdir():
            made.unlink()
    return {'seconds': round(statistics.median(seconds), 3), 'mib': round(size, 2)}


def _ratio(found: dict[str, Any], one: str, other: str) -> dict[str, float]:
    return {k: round(found[one][k] / found[other][k], 3) for k in ('seconds', 'mib')}
