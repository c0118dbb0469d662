"""How much a delta changes each block, from its file and perhaps its base."""

import re
from collections.abc import Mapping
from typing import Any

from torchgeo_explora.adapt import Adaptation
from torchgeo_explora.adapt.average import lora_scale
from torchgeo_explora.analysis import block_changes
from torchgeo_explora.export import rebuild
from torchgeo_explora.models.backbones.from_file import backbone_from_file
from torchgeo_explora.report.run import Run

_BLOCK = re.compile(r'blocks\.(\d{1,5})\.(.+)')


def lora_norms(run: Run) -> dict[int, float]:
    """Return the Frobenius norm of what LoRA adds to the weights of each block.

    It is the root of the sum over layers of ||s B A||^2, with s = alpha / rank.

    Args:
        run: A run with a delta.

    Returns:
        The norms by block, from 0; {} for an adapter whose update is not s B A.
    """
    adaptation = Adaptation.from_dict(run.metadata['adaptation'])
    adapter: Mapping[str, Any] = adaptation.to_dict()['adapter'] or {}
    if adapter.get('peft_type') != 'LORA' or adapter.get('use_dora'):
        return {}
    scale = lora_scale(adapter)
    found: dict[int, float] = {}
    for name, down in run.tensors.items():
        block = _BLOCK.match(name)
        up = run.tensors.get(name.replace('.lora_A.', '.lora_B.'))
        if not block or '.lora_A.' not in name or up is None or down.ndim != 2:
            continue
        # ||B A||^2 = tr(B^T B A A^T), which needs no matrix of the layer's size.
        down, up = down.double(), up.double()
        square = ((up.T @ up) * (down @ down.T).T).sum().item()
        index = int(block[1])
        found[index] = found.get(index, 0.0) + scale**2 * square
    return {index: max(square, 0.0) ** 0.5 for index, square in found.items()}


def whole_blocks(run: Run) -> set[int]:
    """Return the blocks that were trained in full, from 0."""
    found = set()
    for name in run.tensors:
        block = _BLOCK.match(name)
        if block and block[2] == 'mlp.fc1.weight':
            found.add(int(block[1]))
    return found


def relative_changes(run: Run, weights: str) -> list[dict[str, float]]:
    """Return ||W' - W|| / ||W|| of every layer, as `block_changes` does.

    Args:
        run: A run with a delta.
        weights: The weights of its base: a file, or the name of published weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If they are not the base of the delta.
    """
    assert run.delta is not None
    kind, arguments = run.metadata['backbone'], run.metadata['arguments']
    base = backbone_from_file(kind, arguments, weights, source=run.delta)
    return block_changes(base, rebuild(run.delta, weights))
