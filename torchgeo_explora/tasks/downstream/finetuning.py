"""Train a backbone together with a head: adapter, prompts and schedule."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from peft import AdaLoraConfig
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from torchgeo_explora.adapt import Adaptation, adapt
from torchgeo_explora.adapt.ranks import RankSchedule
from torchgeo_explora.functional import cosine_schedule
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.prompts import Prompts
from torchgeo_explora.tasks.downstream.options import FinetuningOptions
from torchgeo_explora.tasks.run.adaptation import choose_adapter
from torchgeo_explora.tasks.run.backbone import set_drop_path
from torchgeo_explora.tasks.run.optimizer import layer_groups
from torchgeo_explora.tasks.run.plan import plan


class FineTuning:
    """The fine-tuning of one backbone in one run.

    A task calls the methods in the order in which they are defined. AdaLoRA's ranks are
    part of its state.

    Args:
        options: What is trained, and how fast.

    Raises:
        ValueError: If *adapter* is given together with *rank* or *alpha*.
    """

    def __init__(self, options: FinetuningOptions) -> None:
        """Choose the adapter."""
        self.options = options
        self.adapter = choose_adapter(options.adapter, options.rank, options.alpha)
        self.lr = 0.0
        self.effective_batch = 0
        self.ranks: RankSchedule | None = None
        self._saved_ranks: dict[str, Any] | None = None

    def adapt(self, backbone: Backbone) -> Prompts | None:
        """Make the chosen parts of a backbone trainable, in place.

        Returns:
            The prompts that were added to it, if any.
        """
        options = self.options
        adaptation = Adaptation(
            unfreeze=options.unfreeze,
            norms=options.norms,
            cls_token=options.cls_token,
            adapter=self.adapter,
            modules=options.modules,
        )
        adapt(backbone, adaptation)
        set_drop_path(backbone, options.drop_path)
        if not options.prompts:
            return None
        return Prompts(backbone, options.prompts, options.deep_prompts)

    def optimizers(
        self, trainer: Trainer, backbone: Backbone, others: Iterable[nn.Parameter]
    ) -> dict[str, Any]:
        """Plan the run: AdamW, with warm-up and cosine by optimizer step.

        Args:
            trainer: A trainer about to fit.
            backbone: The adapted backbone.
            others: Parameters outside it, which get the full rate.

        Returns:
            Optimizer and schedule in Lightning's form.
        """
        options = self.options
        steps, self.effective_batch = plan(trainer)
        self.lr = options.base_lr * self.effective_batch / 256
        if isinstance(self.adapter, AdaLoraConfig):
            self.ranks = RankSchedule(backbone, self.adapter, steps)
            if self._saved_ranks is not None:
                self.ranks.load_state_dict(self._saved_ranks)
        groups = layer_groups(
            backbone, others, self.lr, options.layer_decay, options.weight_decay
        )
        optimizer = AdamW(groups, lr=self.lr)
        rate = partial(
            cosine_schedule,
            total=steps,
            start=1.0,
            end=options.min_lr / self.lr,
            warmup=int(options.warmup * steps),
        )
        schedule = LambdaLR(optimizer, rate)
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': schedule, 'interval': 'step'},
        }

    def penalized(self, loss: Tensor, micro_batches: int) -> Tensor:
        """Return the loss with AdaLoRA's penalty, which counts once per optimizer step.

        Args:
            loss: Loss of one micro-batch.
            micro_batches: Micro-batches in one optimizer step.
        """
        if self.ranks is None:
            return loss
        return loss + self.ranks.penalty() / micro_batches

    def after_step(self, done: int) -> None:
        """Update AdaLoRA's ranks.

        Args:
            done: Optimizer steps done.
        """
        if self.ranks is not None:
            self.ranks.step(done)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the state of AdaLoRA's ranks, if any."""
        return {} if self.ranks is None else {'ranks': self.ranks.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Keep what `state` returned, for `optimizers`."""
        self._saved_ranks = state.get('ranks')

    def summary(self) -> str:
        """Return one line about batch and learning rate."""
        return (
            f'effective batch {self.effective_batch}, learning rate {self.lr:.3g}'
            f' (base {self.options.base_lr:.3g})'
        )
