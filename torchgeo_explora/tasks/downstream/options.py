"""Arguments that downstream tasks share: where they start, and how they train."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig

from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.tasks.run.options import TaskOptions
from torchgeo_explora.tasks.run.refusal import told_by_command


@dataclass(kw_only=True)
class DownstreamOptions(TaskOptions):
    """The backbone that every downstream task starts from; and all of `TaskOptions`.

    Args:
        model: Name of a timm VisionTransformer, a backbone, or its class path.
        delta: File that a pre-training task or `save_delta` wrote for these weights. A
            model by name gets views of the size that the delta was trained on, unless
            *image_size* is given.
        crop_fraction: Share of each side of an image that evaluation sees; 0.875 is the
            usual centre crop of 224 from 256.
    """

    model: Backbone | str = 'vit_large_patch14_dinov2.lvd142m'
    delta: str | None = None
    crop_fraction: float = 1.0


@dataclass(kw_only=True)
class FinetuningOptions(DownstreamOptions):
    """What is trained in the backbone, how fast; and all of `DownstreamOptions`.

    The defaults are ExPLoRA's second stage: the delta of the first stage is folded in,
    and LoRA of rank 8 on the queries and values of all blocks is trained together with
    the head, without weight decay, with a cosine schedule that ends at 1e-6 and a
    drop-path rate of 0.2. Full fine-tuning is `modules: ['']` with `rank: 0`; `rank: 0`
    without *modules* trains a head on frozen features. Visual prompts are
    `prompts: 100`, with `rank: 0` or together with an adapter.

    Args:
        unfreeze: Blocks that are trained in full.
        norms: Whether all normalisation layers are trained.
        cls_token: Whether the class token is trained.
        modules: Names of modules or parameters that are also trained in full; '' is the
            whole backbone.
        rank: Rank of the default LoRA on q and v (8 if None); 0 for no adapter.
        alpha: LoRA scaling is alpha / rank (alpha is 1 if None, as in the authors'
            code).
        adapter: Any PEFT config instead of the default LoRA; *rank* and *alpha* must
            then be left out.
        prompts: Number of visual prompts; 0 for none.
        deep_prompts: Whether every block has its own prompts.
        drop_path: Drop-path rate of the last block; it falls linearly to 0 in the
            first.
        base_lr: Learning rate for an effective batch of 256; the rate in use is this
            times effective batch / 256.
        min_lr: Learning rate at the end of the cosine.
        warmup: Share of the run with a linear warm-up.
        layer_decay: Learning rate of a layer relative to the next one; 1 for the same
            rate everywhere.
        weight_decay: AdamW's weight decay; vectors, class token and positions have
            none.

    Raises:
        ValueError: If the learning rate is not positive.
    """

    unfreeze: Sequence[int] = ()
    norms: bool = False
    cls_token: bool = False
    modules: Sequence[str] = ()
    rank: int | None = None
    alpha: int | None = None
    adapter: PeftConfig | dict[str, Any] | None = None
    prompts: int = 0
    deep_prompts: bool = False
    drop_path: float = 0.2
    base_lr: float = 1e-3
    min_lr: float = 1e-6
    warmup: float = 1 / 120
    layer_decay: float = 1.0
    weight_decay: float = 0.0

    @told_by_command()
    def __post_init__(self) -> None:
        """Check the rate, and choose the default rank."""
        super().__post_init__()
        if self.base_lr <= 0:
            raise ValueError(f'*base_lr* must be positive, not {self.base_lr}')
        if self.adapter is None and self.rank is None:
            self.rank = 8
