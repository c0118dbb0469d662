"""What all tasks share that fine-tune a backbone on labels."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from peft import AdaLoraConfig, PeftConfig
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import adapt
from torchgeo_explora.adapt.ranks import RankSchedule
from torchgeo_explora.functional import cosine_schedule
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.prompts import Prompts
from torchgeo_explora.tasks.downstream.base import DownstreamTask
from torchgeo_explora.tasks.run.adaptation import adaptation, choose_adapter, plain
from torchgeo_explora.tasks.run.backbone import set_drop_path
from torchgeo_explora.tasks.run.optimizer import layer_groups
from torchgeo_explora.tasks.run.plan import plan


class FinetuningTask(DownstreamTask):
    """Fine-tune a backbone, or a fresh adapter in it, together with a head.

    The defaults are ExPLoRA's second stage: the first stage's delta is folded in, and
    LoRA of rank 8 on the queries and values of all blocks trains with the head, without
    weight decay, with a cosine that ends at 1e-6 and drop path of 0.2. Full
    fine-tuning is `modules: ['']` with `rank: 0`; a trained head on frozen features
    `rank: 0` alone. Visual prompts are `prompts: 100`, with `rank: 0` or beside an
    adapter.

    Args:
        model: A backbone, or the name of a timm VisionTransformer.
        weights: Weights of the base, as in `DownstreamTask`.
        delta: Delta that goes on it.
        in_channels: Channels of the images, for a named model (3 if None).
        image_size: Size of the views in pixels.
        unfreeze: Blocks that train whole.
        norms: Whether all normalisation layers train.
        cls_token: Whether the class token trains.
        modules: Names of modules or parameters that train whole besides; '' is the
            whole backbone.
        rank: Rank of the default LoRA on q and v (8 if None); 0 for no adapter.
        alpha: LoRA scaling is alpha / rank (alpha 1 if None, as the authors have).
        adapter: Any PEFT config instead of the default LoRA; then neither *rank* nor
            *alpha* may be given.
        prompts: Number of visual prompts; 0 for none.
        deep_prompts: Whether every block has prompts of its own.
        drop_path: Drop-path rate of the last block, falling to 0 in the first.
        base_lr: Rate for an effective batch of 256; the rate in use is this times
            effective batch / 256.
        min_lr: Rate at the end of the cosine.
        warmup: Share of the run with a linear warm-up.
        layer_decay: Rate of a layer over that of the next one; 1 for one rate.
        weight_decay: AdamW's; vectors, class token and positions have none.
        crop_fraction: Share of each side of an image that evaluation sees.
        value_range: (low, high) of the sensor values; the data module's if None.
        mean: Mean of the normalisation; the delta's or the base's if None.
        std: Standard deviation, likewise.
        model_args: Further arguments of a named model.
        seed: Seed of augmentation, drop path and the order of the images.
    """

    ignore: tuple[str, ...] = (*DownstreamTask.ignore, 'adapter')

    def __init__(
        self,
        model: Backbone | str = 'vit_large_patch14_dinov2.lvd142m',
        # bool first: a command line's `true` is no name.
        weights: bool | WeightsEnum | str | None = True,
        delta: str | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        unfreeze: Sequence[int] = (),
        norms: bool = False,
        cls_token: bool = False,
        modules: Sequence[str] = (),
        rank: int | None = None,
        alpha: int | None = None,
        adapter: PeftConfig | dict[str, Any] | None = None,
        prompts: int = 0,
        deep_prompts: bool = False,
        drop_path: float = 0.2,
        base_lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup: float = 1 / 120,
        layer_decay: float = 1.0,
        weight_decay: float = 0.0,
        crop_fraction: float = 1.0,
        value_range: tuple[Any, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        model_args: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Build backbone, adapter and head.

        Raises:
            ValueError: If *adapter* comes together with *rank* or *alpha*, or the
                learning rate is not positive.
        """
        if base_lr <= 0:
            raise ValueError(f'*base_lr* must be positive, not {base_lr}')
        if adapter is None and rank is None:
            rank = 8
        self.adapter = choose_adapter(adapter, rank, alpha)
        self.ranks: RankSchedule | None = None
        self._ranks_saved: dict[str, Any] | None = None
        super().__init__(
            model,
            weights,
            delta,
            in_channels,
            image_size,
            crop_fraction,
            value_range,
            mean,
            std,
            model_args,
            seed,
        )
        self.save_hyperparameters({'adapter': plain(adapter)})

    def adapt_backbone(self) -> None:
        """Make the adaptation trainable, and add prompts and drop path.

        A head that changes the backbone does so before.
        """
        hparams = self.hparams
        adapt(self.backbone, adaptation(hparams, self.adapter, hparams['modules']))
        set_drop_path(self.backbone, hparams['drop_path'])
        self.prompts = (
            Prompts(self.backbone, hparams['prompts'], hparams['deep_prompts'])
            if hparams['prompts']
            else None
        )

    def configure_optimizers(self) -> Any:
        """Plan the run: AdamW, warm-up and cosine by optimizer step."""
        hparams = self.hparams
        steps, self.effective_batch = plan(self.trainer)
        self.lr = hparams['base_lr'] * self.effective_batch / 256
        if isinstance(self.adapter, AdaLoraConfig):
            self.ranks = RankSchedule(self.backbone, self.adapter, steps)
            if self._ranks_saved is not None:
                self.ranks.load_state_dict(self._ranks_saved)
        groups = layer_groups(
            self.backbone,
            self._beside_backbone(),
            self.lr,
            hparams['layer_decay'],
            hparams['weight_decay'],
        )
        optimizer = AdamW(groups, lr=self.lr)
        rate = partial(
            cosine_schedule,
            total=steps,
            start=1.0,
            end=hparams['min_lr'] / self.lr,
            warmup=int(hparams['warmup'] * steps),
        )
        return {
            'optimizer': optimizer,
            'lr_scheduler': {
                'scheduler': LambdaLR(optimizer, rate),
                'interval': 'step',
            },
        }

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add AdaLoRA's penalty, once an optimizer step."""
        if self.ranks is not None:
            loss = loss + self.ranks.penalty() / self.trainer.accumulate_grad_batches
        super().backward(loss, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move AdaLoRA's ranks."""
        super().optimizer_step(*args, **kwargs)
        if self.ranks is not None:
            # Lightning counts this step after the hook.
            self.ranks.step(self.trainer.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base out; keep what moves AdaLoRA's ranks."""
        super().on_save_checkpoint(checkpoint)
        if self.ranks is not None:
            checkpoint['explora']['ranks'] = self.ranks.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check base and keys, and keep AdaLoRA's state for the run."""
        super().on_load_checkpoint(checkpoint)
        self._ranks_saved = checkpoint['explora'].get('ranks')

    def _beside_backbone(self) -> list[Any]:
        inside = {id(p) for p in self.backbone.parameters()}
        return [p for p in self.parameters() if id(p) not in inside]

    def summary(self) -> str:
        """Return what is about to run."""
        return (
            f'{super().summary()}\neffective batch {self.effective_batch}, learning'
            f' rate {self.lr:.3g} (base {self.hparams["base_lr"]:.3g})'
        )

    def log_loss(self, loss: Tensor, split: str, size: int) -> None:
        """Log a loss, and stop where it is not finite.

        Raises:
            FloatingPointError: If the training loss is not finite.
        """
        if split == 'train' and not loss.isfinite():
            raise FloatingPointError(
                f'the loss is not finite at optimizer step {self.trainer.global_step}:'
                ' lower base_lr, or look for images with no-data values'
            )
        self.log(f'{split}_loss', loss, prog_bar=True, batch_size=size)
