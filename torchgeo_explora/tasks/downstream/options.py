"""Arguments that downstream tasks share: where they start, and how they train."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from peft import PeftConfig
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.tasks.run.adaptation import plain_arguments
from torchgeo_explora.tasks.run.backbone import describe, rebuild


@dataclass(kw_only=True)
class DownstreamOptions:
    """The backbone that every downstream task starts from, and how it sees images.

    Args:
        model: A backbone (a class path in a configuration), or the name of a timm
            VisionTransformer.
        weights: A path to a checkpoint, a weights enum or its name, True for timm's
            weights of a named model, or None for random weights. A given backbone
            loads them with its `start_from`; None leaves it as it is.
        delta: File that a pre-training task or `save_delta` wrote for these weights.
        in_channels: Channels of the images, for a named model (3 if None).
        image_size: Size of the views in pixels; if None, 224 for a named model, or the
            size of a given backbone.
        crop_fraction: Share of each side of an image that evaluation sees; 0.875 is the
            usual centre crop of 224 from 256.
        value_range: (low, high) of the sensor values, scalars or one per channel; taken
            from the data module if None.
        mean: Mean of the normalisation, of values in [0, 1]; the delta's or the base's
            if None.
        std: Standard deviation of the normalisation; the delta's or the base's if None.
        model_args: Further arguments of a named model (`embed_dim`, `depth`, ...).
        seed: Seed of augmentation, drop path and the order of the images.
    """

    model: Backbone | str = 'vit_large_patch14_dinov2.lvd142m'
    # bool first: otherwise `true` on a command line would be read as a name.
    weights: bool | WeightsEnum | str | None = True
    delta: str | None = None
    in_channels: int | None = None
    image_size: int | None = None
    crop_fraction: float = 1.0
    value_range: tuple[Any, Any] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    model_args: dict[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Rebuild a backbone that a checkpoint has as plain values."""
        self.model = rebuild(self.model)

    def plain(self) -> dict[str, Any]:
        """Return the options as values that a checkpoint may hold."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        weights = plain_arguments(self.weights, None)['weights']
        return values | {'model': describe(self.model), 'weights': weights}


@dataclass(kw_only=True)
class FinetuningOptions(DownstreamOptions):
    """What trains of the backbone, and how fast; and all of `DownstreamOptions`.

    The defaults are ExPLoRA's second stage: the delta of the first stage is folded in,
    and LoRA of rank 8 on the queries and values of all blocks trains together with the
    head, without weight decay, with a cosine schedule that ends at 1e-6 and a drop-path
    rate of 0.2. Full fine-tuning is `modules: ['']` with `rank: 0`; `rank: 0` without
    *modules* trains a head on frozen features. Visual prompts are `prompts: 100`, with
    `rank: 0` or together with an adapter.

    Args:
        unfreeze: Blocks that are trained in full.
        norms: Whether all normalisation layers train.
        cls_token: Whether the class token trains.
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
        layer_decay: Learning rate of a layer relative to the next one; 1 for one rate.
        weight_decay: AdamW's weight decay, which vectors, class token and positions do
            not have.

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

    def __post_init__(self) -> None:
        """Check the rate, and choose the default rank."""
        super().__post_init__()
        if self.base_lr <= 0:
            raise ValueError(f'*base_lr* must be positive, not {self.base_lr}')
        if self.adapter is None and self.rank is None:
            self.rank = 8

    def plain(self) -> dict[str, Any]:
        """Return the options as values that a checkpoint may hold."""
        adapter = plain_arguments(None, self.adapter)['adapter']
        return super().plain() | {'adapter': adapter}
