"""What it costs to write a checkpoint: ours, and that of a run that trains all."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training import TINY, Sizes, build, optimizer_of

from torchgeo_explora.adapt import delta_state_dict, save_delta
from torchgeo_explora.models import ViT


def write_times(folder: str, tiny: bool) -> dict[str, Any]:
    """Write three files of a ViT-L's run, and one of a run that trains all.

    Args:
        folder: Where to.
        tiny: Toy sizes.

    Returns:
        Seconds and MiB of 'delta' (the product), 'resumable' (delta, heads, teacher,
        AdamW's moments), 'backbone' (a whole ViT-L), and 'resumable_whole' (student,
        teacher, heads, moments of all).
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
    heads = _plain(objective.head.state_dict())
    everything = [*whole.values(), *heads.values()]
    place = Path(folder)
    contents: dict[str, Any] = {
        'backbone': whole,
        'resumable': {
            'state_dict': delta_state_dict(objective),
            'optimizer': optimizer.state_dict(),
        },
        # The moments are as large as what they belong to.
        'resumable_whole': [everything, *_copies(everything)],
    }
    found = {'delta': _timed(place, lambda file: save_delta(objective.teacher, file))}
    for name, content in contents.items():
        found[name] = _timed(place, lambda file, c=content: torch.save(c, file))
    return {
        'files': found,
        'delta_over_backbone': _ratio(found, 'delta', 'backbone'),
        'resumable_over_whole': _ratio(found, 'resumable', 'resumable_whole'),
    }


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in state.items()}


def _copies(tensors: list[Tensor]) -> list[list[Tensor]]:
    # Teacher and two moments; a file would hold one tensor of the same storage once.
    return [[t.clone() for t in tensors] for _ in range(3)]


def _timed(place: Path, write: Any) -> dict[str, float]:
    file = place / 'part.safetensors'
    began = time.perf_counter()
    write(file)
    seconds = time.perf_counter() - began
    size = file.stat().st_size / 2**20
    file.unlink()
    return {'seconds': round(seconds, 3), 'mib': round(size, 2)}


def _ratio(found: dict[str, Any], one: str, other: str) -> dict[str, float]:
    return {k: round(found[one][k] / found[other][k], 3) for k in ('seconds', 'mib')}
