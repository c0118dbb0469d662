"""Suggest which block to unfreeze, and which rank, from spectra and a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from torchgeo_explora.analysis.blocks import BlockReport
from torchgeo_explora.models.backbones.backbone import Backbone

RANKS = (128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Suggestion:
    """What to train.

    Attributes:
        unfreeze: Block to train in full, from 0.
        rank: Rank of LoRA on the queries and values of the others; 0 if the budget
            leaves nothing for it.
        parameters: Parameters of the delta.
        share: Their share of the base's parameters.
        order: Blocks of the deep half, the best candidate first.
    """

    unfreeze: int
    rank: int
    parameters: int
    share: float
    order: tuple[int, ...]


def suggest(
    backbone: Backbone, blocks: Sequence[BlockReport], budget: float = 0.07
) -> Suggestion:
    """Return what the paper's criterion chooses within a budget of parameters.

    Khanna et al., *ExPLoRA*: blocks with low principal eigenvalues hold global
    information, and unfreezing one of them, deep in the network, helps most. Among the
    deep half, the block with the lowest mean eigenvalue is taken; then the largest rank
    that fits.

    Args:
        backbone: The base, without a delta.
        blocks: Its `analyze_blocks` on a sample of the new images.
        budget: Largest share of the base's parameters that may be trained.

    Raises:
        ValueError: If the budget is not a share, or one block and the norms already
            exceed it.
    """
    if not 0 < budget <= 1:
        raise ValueError(f'*budget* is {budget}: give a share, such as 0.07 for 7 %')
    depth = len(backbone.blocks)
    order = sorted(range(depth // 2, depth), key=lambda i: blocks[i].eigenvalue_mean)
    total = sum(parameter.numel() for parameter in backbone.parameters())
    chosen = order[0]
    fixed = sum(p.numel() for p in backbone.blocks[chosen].parameters())
    fixed += sum(
        parameter.numel()
        for name, parameter in backbone.named_parameters()
        if 'norm' in name and not name.startswith(f'blocks.{chosen}.')
    )
    fixed += backbone.embed_dim  # the class token
    if fixed > budget * total:
        raise ValueError(
            f'one block and the norms are {fixed / total:.1%} of this backbone, above'
            f' *budget* {budget:.1%}: give at least {fixed / total:.3f}, or train'
            ' adapters only (unfreeze: [])'
        )
    # LoRA on q and v: two matrices of D x D, each with two factors of D x r.
    each = 4 * backbone.embed_dim * (depth - 1)
    rank = next((r for r in RANKS if fixed + r * each <= budget * total), 0)
    parameters = fixed + rank * each
    return Suggestion(chosen, rank, parameters, parameters / total, tuple(order))
