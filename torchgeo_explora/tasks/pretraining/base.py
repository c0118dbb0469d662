"""The Lightning part that all self-supervised tasks share."""

import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from peft import PeftConfig
from torch import Tensor
from torch.optim import Optimizer

from torchgeo_explora.adapt import count, delta_state_dict, save_delta, store_frozen
from torchgeo_explora.augment import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from torchgeo_explora.callbacks.parquet import EmbeddingWriter
from torchgeo_explora.models.backbones.backbone import Backbone, compile_blocks
from torchgeo_explora.objectives import Objective
from torchgeo_explora.objectives.objective import batch_metadata
from torchgeo_explora.tasks.run.adaptation import (
    adaptation,
    for_channels,
    make_trainable,
)
from torchgeo_explora.tasks.run.checkpoint import (
    DeltaCheckpointIO,
    identity,
    require_fit,
    without_delta,
    write_to,
)
from torchgeo_explora.tasks.run.idle import IdleClock
from torchgeo_explora.tasks.run.optimizer import may_fuse, optimizer_plan
from torchgeo_explora.tasks.run.plan import plan, require_replicas
from torchgeo_explora.tasks.run.raw_images import (
    RawImages,
    require_predict_set,
    take_over,
)
from torchgeo_explora.tasks.run.resumable import (
    ResumableTask,
    generator_states,
    restore_generators,
)


class PretrainingTask(ResumableTask):
    """Continue a backbone's self-supervised pre-training on unlabelled images.

    A subclass builds `self.objective` in `configure_models` and gives the rule for
    the learning rate. This class plans the run, feeds the objective, keeps the delta
    (not the base) in checkpoints and makes a run resumable bit for bit.

    The data module's own normalisation and augmentation are taken over: the task gets
    raw sensor values, maps them to [0, 1] and normalises as the base was trained.
    """

    ignore: tuple[str, ...] = ('weights', 'adapter', 'augmentations')
    monitor = 'loss'

    #: Attributes set by a subclass before `super().__init__`.
    adapter: PeftConfig | None
    base_lr: float
    min_lr: float
    warmup: float
    betas: tuple[float, float]
    weight_decay: float
    value_range: tuple[Any, Any] | None
    #: The method's letter in the paper's notation.
    letter: str

    #: Set by `configure_models`.
    objective: Objective
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self) -> None:
        """Build the objective.

        Raises:
            ValueError: If the learning rate or the warm-up is out of range.
        """
        if self.base_lr <= 0:
            raise ValueError(f'*base_lr* must be positive, not {self.base_lr}')
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f'*warmup* is a share of the run, from 0 to below 1, not {self.warmup}'
            )
        super().__init__()
        if self.hparams['compiled']:
            compile_blocks(self.objective)
        warnings.filterwarnings('ignore', 'Found keys that are in the model state dict')
        # Nothing is validated, by design; Lightning looks before `setup`.
        warnings.filterwarnings('ignore', 'You passed in a `val_dataloader`')
        self.planned_steps = 0
        self.effective_batch = 0
        self.lr = 0.0
        self._resumed: dict[str, Any] | None = None

    @property
    def backbone(self) -> Backbone:
        """The backbone to keep: embeddings and the delta come from it."""
        return self.objective.pretrained

    @abstractmethod
    def scaled_lr(self, effective_batch: int) -> float:
        """Return the rate in use for images per optimizer step, over all devices."""

    def adapt_student(self, student: Backbone, modules: Sequence[str]) -> None:
        """Make the delta trainable, and choose the statistics of the images.

        Args:
            student: Plain backbone.
            modules: Names of modules and parameters that train whole besides.
        """
        make_trainable(student, adaptation(self.hparams, self.adapter, modules))
        if (dtype := self.hparams['frozen_dtype']) != 'float32':
            store_frozen(student, getattr(torch, dtype))
        student.checkpointing = self.hparams['checkpointing']
        for name, default in (('mean', IMAGENET_MEAN), ('std', IMAGENET_STD)):
            statistic = getattr(student, name, default)
            given = self.hparams[name] or for_channels(statistic, student.in_channels)
            setattr(self, name, tuple(given))

    def preprocess(self) -> Preprocess:
        """Return the evaluation view of an image in [0, 1]."""
        return Preprocess(self.image_size, self.mean, self.std)

    # Data -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take over the data module's normalisation, and find the bands it gives."""
        datamodule = getattr(self.trainer, 'datamodule', None)
        if stage == 'predict':
            require_predict_set(datamodule)
        raw_images = RawImages(self.backbone, datamodule, self.value_range)
        self.raw_images = raw_images.to(self.device)
        self.view = self.preprocess().to(self.device)
        take_over(datamodule)
        if stage == 'fit':
            require_replicas(self.trainer, self.hparams['frozen_dtype'])
            # The teacher is in eval mode by design.
            warnings.filterwarnings('ignore', r'Found \d+ module\(s\) in eval mode')
            # A trainer's last task may have been another one, with its own delta.
            io = without_delta(self.trainer.strategy.checkpoint_io)
            self.trainer.strategy.checkpoint_io = DeltaCheckpointIO(io, self.save_delta)

    def unit_image(self, batch: dict[str, Any]) -> Tensor:
        """Return the images of a batch in [0, 1], (B, C, H, W), or series of them."""
        image: Tensor = self.raw_images(batch['image'])
        return image

    def known_image(self, batch: dict[str, Any]) -> Tensor:
        """Return `unit_image`, NaN where a method knows that there is no data."""
        return self.unit_image(batch)

    @torch.no_grad()
    def embed(self, batch: dict[str, Any]) -> Tensor:
        """Return the class-token embeddings of a raw batch, (B, D), float32.

        They have the precision of the caller: `predict` embeds under the trainer's
        autocast (bf16-mixed, 16-mixed), whose products are rounded; `OnlineKNN` embeds
        between steps, where autocast is off. There, layers that *frozen_dtype* stores
        in bfloat16 work in bfloat16 still, and the rest in float32.
        """
        mode = self.training
        self.eval()
        try:
            # 0 is the mean of normalised pixels: what training shows there, too.
            view = self.view(self.known_image(batch)).nan_to_num(0)
            return self.backbone(view, **batch_metadata(batch)).cls.float()
        finally:
            self.train(mode)

    # The run --------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Write what `predict` returns to a Parquet file."""
        # Lightning lets a task's callback replace the user's of the same type.
        if any(isinstance(c, EmbeddingWriter) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            return []
        return [EmbeddingWriter()]

    def configure_optimizers(self) -> Any:
        """Plan the run: AdamW on what trains, warm-up and cosine by optimizer step."""
        self.planned_steps, self.effective_batch = plan(self.trainer)
        self.lr = self.scaled_lr(self.effective_batch)
        return optimizer_plan(
            self.parameter_groups(),
            *(self.lr, self.min_lr, self.planned_steps, self.warmup),
            *(self.betas, self.weight_decay),
            may_fuse(self.device, str(self.trainer.precision)),
        )

    def describe_views(self) -> str:
        """Return one line on the views of an image."""
        describe = getattr(self.objective.augment, 'describe', None)
        return describe(self.backbone.in_channels) if describe else 'own augmentations'

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups of what trains, as `optimizer_plan` takes them."""
        return [{'params': [p for p in self.objective.parameters() if p.requires_grad]}]

    def on_train_start(self) -> None:
        """Take up data, generators and clock where a resumed run stopped."""
        super().on_train_start()
        if self._resumed is not None:
            restore_generators(self._resumed)
            self._resumed = None
        self._clock = time.perf_counter()
        self._idle = IdleClock(self.device)

    def summary(self) -> str:
        """Return what is about to run, in the paper's notation."""
        student: Any = self.objective.student
        trained, base = count(student)
        name = student.adaptation.name(len(student.blocks))
        heads = count(self.objective)[0] - trained
        return (
            f'{self.letter}-{name}: {base / 1e6:.2f} M parameters,'
            f' {trained / 1e6:.2f} M trained ({100 * trained / base:.1f} %),'
            f' and {heads / 1e6:.2f} M of heads\n'
            f'precision {self.trainer.precision}, effective batch'
            f' {self.effective_batch}, learning rate {self.lr:.3g}'
            f' (base {self.base_lr:.3g}), {self.planned_steps} optimizer steps\n'
            + self.describe_views()
        )

    @property
    def progress(self) -> float:
        """Optimizer steps done over planned."""
        return min(self.trainer.global_step / self.planned_steps, 1.0)

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the loss of a micro-batch.

        Raises:
            FloatingPointError: If a term is not finite; the error names it.
        """
        batch = {**batch, 'image': self.known_image(batch)}
        with self.seeded():
            terms = self.objective(batch, self.progress)
        values = torch.stack([term.detach().float() for term in terms.values()])
        if not torch.isfinite(values).all():
            bad = ', '.join(n for n, term in terms.items() if not term.isfinite())
            raise FloatingPointError(
                f'the loss term {bad} is not finite at optimizer step'
                f' {self.trainer.global_step}: lower base_lr, or look for images with'
                ' no-data values; checkpoints written before are whole'
            )
        loss = torch.stack(list(terms.values())).sum()
        size = batch['image'].shape[0]
        self.log('loss', loss, prog_bar=True, batch_size=size)
        self.log_dict(
            {f'loss/{name}': value for name, value in zip(terms, values, strict=True)},
            batch_size=size,
        )
        self.log_dict(
            {f'train/{n}': v for n, v in self.objective.diagnostics.items()},
            batch_size=size,
        )
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Mark that the device has work again."""
        self._idle.begin()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the share of the time in which the device waited for a batch."""
        share = self._idle.end()
        if share is not None:
            # A tensor: a plain number would be sent to the device, and waited for.
            self.log('device_idle', torch.tensor(share), batch_size=1)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the objective clip, and log the norms and the rate."""
        norms = self.objective.before_step(self.progress)
        self.log_dict({f'grad_norm/{name}': norm for name, norm in norms.items()})
        self.log('lr', optimizer.param_groups[0]['lr'])

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Any = None,
    ) -> None:
        """Step, then move the teacher, with the progress of this step's forward."""
        progress = self.progress
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.objective.after_step(progress)
        now = time.perf_counter()
        rate = self.effective_batch / (now - self._clock)
        self.log('images_per_second', rate, prog_bar=True)
        self._clock = now

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return embeddings, (B, D)."""
        return self.embed(batch)

    # What is kept -----------------------------------------------------------------

    def save_delta(self, path: Path) -> None:
        """Write the delta of the backbone to keep."""
        save_delta(self.backbone, path, self.delta_metadata())

    def delta_metadata(self) -> dict[str, str]:
        """Return what a user of the delta must know about its making."""
        return {
            'objective': type(self.objective).__name__,
            'steps': str(self.trainer.global_step),
            'planned_steps': str(self.planned_steps),
            'effective_batch': str(self.effective_batch),
            'mean': str(list(self.view.mean)),
            'std': str(list(self.view.std)),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the delta, heads and generators; leave the base out."""
        checkpoint['state_dict'] = delta_state_dict(self)
        checkpoint['explora'] = {
            **identity(self.objective.student),
            'micro_steps': self.micro_steps,
            'generators': generator_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the base and the keys before a weight is touched.

        Raises:
            ValueError: If the checkpoint belongs to another base or architecture.
        """
        expected = identity(self.objective.student)
        saved = require_fit(checkpoint, expected, delta_state_dict(self).keys())
        self.micro_steps = saved['micro_steps']
        self._resumed = saved['generators']

    def on_train_end(self) -> None:
        """Write the last delta, and say where the files are."""
        # Lightning broadcasts the folder: every rank must ask for it.
        folder = self.trainer.log_dir or self.trainer.default_root_dir
        if not self.trainer.is_global_zero:
            return
        place, size = write_to(folder, 'delta.safetensors', self.save_delta)
        rank_zero_info(f'delta: {place} ({size / 2**20:.2f} MiB)')
