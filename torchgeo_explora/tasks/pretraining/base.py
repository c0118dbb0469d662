"""What all self-supervised tasks share."""

import json
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from peft import PeftConfig
from torch import Tensor
from torch.optim import Optimizer

from torchgeo_explora.adapt import (
    Adaptation,
    count,
    delta_state_dict,
    fingerprint,
    read_delta,
    save_delta,
    store_frozen,
)
from torchgeo_explora.augment import Preprocess
from torchgeo_explora.callbacks.cost import Cost
from torchgeo_explora.callbacks.defaults import (
    prediction_writers,
    pretraining_callbacks,
)
from torchgeo_explora.callbacks.knn import OnlineKNN
from torchgeo_explora.callbacks.writers.parquet import EmbeddingWriter
from torchgeo_explora.models.backbones.backbone import Backbone, compile_blocks
from torchgeo_explora.models.backbones.tokens import Features, Pooling, check_size
from torchgeo_explora.objectives import Objective
from torchgeo_explora.objectives.objective import batch_metadata
from torchgeo_explora.tasks.run.adaptation import choose_adapter, make_trainable, plain
from torchgeo_explora.tasks.run.backbone import (
    Model,
    build_backbone,
    side_of,
    statistics,
)
from torchgeo_explora.tasks.run.checkpoint import identity, require_fit, require_values
from torchgeo_explora.tasks.run.idle import IdleClock
from torchgeo_explora.tasks.run.optimizer import Schedule, may_fuse, optimizer_plan
from torchgeo_explora.tasks.run.options import TaskOptions
from torchgeo_explora.tasks.run.plan import plan, require_replicas
from torchgeo_explora.tasks.run.refusal import told_by_command
from torchgeo_explora.tasks.run.resumable import (
    ResumableTask,
    generator_states,
    restore_generators,
)
from torchgeo_explora.writing import write_to


@dataclass(kw_only=True)
class PretrainingOptions(TaskOptions):
    """What is trained in the base, and how fast; and all of `TaskOptions`.

    Args:
        unfreeze: Indices of the blocks that are trained in full; negative ones count
            from the end.
        norms: Whether all normalisation layers are trained.
        cls_token: Whether the class token is trained.
        modules: Names of further modules or parameters that are trained in full.
        rank: Rank of the default LoRA on q and v (64 if None); 0 for no adapter.
        alpha: LoRA scaling is alpha / rank (alpha 1 if None, as in the authors' code).
        adapter: Any PEFT config instead of the default LoRA; *rank* and *alpha* must
            then be left out.
        base_lr: Learning rate at the method's reference batch; see the task for the
            rule.
        schedule: Warm-up and end of the learning rate, and AdamW's settings.
        drop_path: Drop-path rate of the student's last block.
        frozen_dtype: Type in which frozen linear weights are stored. With precision
            bf16-mixed, bfloat16 halves their memory and changes no output.
        checkpointing: Whether activations are recomputed in the backward pass, which
            takes far less memory and about a third more time.
        compiled: Whether the blocks are compiled with torch.compile.

    Raises:
        ValueError: If *base_lr* is not positive.
    """

    unfreeze: Sequence[int] = (-1,)
    norms: bool = True
    cls_token: bool = True
    modules: Sequence[str] = ()
    rank: int | None = None
    alpha: int | None = None
    adapter: PeftConfig | dict[str, Any] | None = None
    base_lr: float = 1e-3
    schedule: Schedule = Schedule()
    drop_path: float = 0.0
    frozen_dtype: Literal['float32', 'bfloat16'] = 'float32'
    checkpointing: bool = False
    compiled: bool = False

    @told_by_command()
    def __post_init__(self) -> None:
        """Check the rate."""
        super().__post_init__()
        if self.base_lr <= 0:
            raise ValueError(f'*base_lr* must be positive, not {self.base_lr}')


class PretrainingTask(ResumableTask):
    """Continue a backbone's self-supervised pre-training on unlabelled images.

    A subclass takes `**pretraining` for `PretrainingOptions`. In its constructor it
    calls `new_student` and sets `self.objective`; it also gives the rule for the
    learning rate. This class plans the run, feeds the objective, stores the delta (not
    the base) in checkpoints and makes a run resumable bit for bit.

    Args:
        options: What is trained, how fast, and on which images.

    Raises:
        ValueError: If *adapter* is given together with *rank* or *alpha*.
    """

    ignore: tuple[str, ...] = (
        *('options', 'model', 'weights', 'adapter', 'augmentations', 'schedule'),
    )
    monitor = 'loss'

    #: The method's letter in the paper's notation.
    letter: str
    #: Whether the method predicts hidden pixels, which can be drawn.
    reconstructs = False
    #: Whether values are reduced to 8 bits before the views are made.
    quantizes = False
    objective: Objective
    options: PretrainingOptions

    def __init__(self, options: PretrainingOptions) -> None:
        """Keep the options."""
        adapter = choose_adapter(options.adapter, options.rank, options.alpha)
        super().__init__(options)
        self.adaptation = Adaptation(
            options.unfreeze,
            options.norms,
            options.cls_token,
            adapter,
            options.modules,
        )
        warnings.filterwarnings('ignore', 'Found keys that are in the model state dict')
        # By design nothing is validated; Lightning checks for it before `setup`.
        warnings.filterwarnings('ignore', 'You passed in a `val_dataloader`')
        self.planned_steps = 0
        self.effective_batch = 0
        self.lr = 0.0
        self._resumed: dict[str, Any] | None = None

    def configure_models(self) -> None:
        """Do nothing: a subclass builds its objective in its constructor."""

    @property
    def backbone(self) -> Backbone:  # type: ignore[override]  # the objective's
        """The backbone to keep: embeddings and the delta come from it."""
        return self.objective.pretrained

    @abstractmethod
    def scaled_lr(self, effective_batch: int) -> float:
        """Return the learning rate for images per optimizer step, over all devices."""

    @told_by_command()
    def new_student(self, model: Model) -> Backbone:
        """Return the adapted backbone, and set the size and statistics of its views.

        Parameters that the base's weights lack are trained in full, without being
        named.

        Args:
            model: A backbone, the name of a timm model, or the class path of a
                backbone.
        """
        options = self.options
        student = build_backbone(
            model,
            options.weights,
            options.in_channels,
            options.image_size,
            options.drop_path,
            options.model_args,
        )
        self.save_hyperparameters({'model': plain(model)})
        modules = (*self.adaptation.modules, *student.record.untrained)
        make_trainable(student, replace(self.adaptation, modules=modules))
        if options.frozen_dtype != 'float32':
            store_frozen(student, getattr(torch, options.frozen_dtype))
        student.checkpointing = options.checkpointing
        self.mean, self.std = statistics(student, options.mean, options.std)
        self.image_size = options.image_size or side_of(student)
        check_size((self.image_size, self.image_size), student.patch_size)
        return student

    def preprocess(self) -> Preprocess:
        """Return the evaluation view of an image in [0, 1]."""
        return Preprocess(self.image_size, self.mean, self.std)

    # Data -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Prepare the images; keep the delta beside each checkpoint."""
        super().setup(stage)
        self.view = self.preprocess().to(self.device)
        if self.options.compiled:
            compile_blocks(self.objective)
        if stage == 'fit':
            self.raw_images.advises = True
            require_replicas(self.trainer, self.options.frozen_dtype)

    def known_image(self, batch: Mapping[str, Any]) -> Tensor:
        """Return `unit_image`, with NaN where the method knows there is no data."""
        return self.unit_image(batch)

    @property
    def pooling(self) -> Pooling:
        """How tokens become an embedding: the method's choice, else the backbone's."""
        return self.objective.pooling or self.backbone.pooling

    @torch.no_grad()
    def embed(self, batch: dict[str, Any], pooling: Pooling | None = None) -> Tensor:
        """Return the embeddings of a raw batch, (B, D) or (B, 2 D), float32.

        They have the precision of the caller: `predict` embeds under the trainer's
        autocast (bf16-mixed, 16-mixed), whose products are rounded; `OnlineKNN` embeds
        between steps, where autocast is off. There, layers that *frozen_dtype* stores
        in bfloat16 still work in bfloat16, and the rest in float32.

        Args:
            batch: Batch of the data module.
            pooling: How tokens become an embedding; `self.pooling` if None.
        """
        return self.embed_tokens(batch).pooled(pooling or self.pooling).float()

    @torch.no_grad()
    def embed_tokens(self, batch: dict[str, Any]) -> Features:
        """Return the tokens of a raw batch, which `embed` pools."""
        mode = self.training
        self.eval()
        try:
            # 0 is the mean of normalised pixels, which training also uses there.
            view = self.view(self.known_image(batch)).nan_to_num(0)
            features: Features = self.backbone(view, **batch_metadata(batch))
            return features
        finally:
            self.train(mode)

    # The run --------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Return callbacks that monitor and save a run, or write predictions.

        A callback given by the user replaces the one of its kind. Predictions go to a
        Parquet file.
        """
        if self.trainer.state.fn == 'fit':
            return pretraining_callbacks(self.trainer, self.reconstructs)
        return prediction_writers(self.trainer, EmbeddingWriter)

    def configure_optimizers(self) -> Any:
        """Plan the run: AdamW, with warm-up and cosine by optimizer step."""
        self.planned_steps, self.effective_batch = plan(self.trainer)
        self.lr = self.scaled_lr(self.effective_batch)
        return optimizer_plan(
            self.parameter_groups(),
            self.lr,
            self.planned_steps,
            self.options.schedule,
            may_fuse(self.device, str(self.trainer.precision)),
        )

    def describe_views(self) -> str:
        """Return one line on the views of an image."""
        summary = getattr(self.objective.augment, 'summary', None)
        return summary(self.backbone.in_channels) if summary else 'own augmentations'

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups of the trainable parameters, for `optimizer_plan`."""
        return [{'params': [p for p in self.objective.parameters() if p.requires_grad]}]

    def on_train_start(self) -> None:
        """Continue with data, generators and clock where a resumed run stopped."""
        super().on_train_start()
        if self._resumed is not None:
            restore_generators(self._resumed)
            self._resumed = None
        self._clock, self._images = time.perf_counter(), 0
        self._idle = IdleClock(self.device)

    def summary(self) -> str:
        """Describe the run that is about to start; its name is like D-[24]-r64."""
        student = self.objective.student
        trained, base = count(student)
        name = self.adaptation.name(len(student.blocks))
        heads = count(self.objective)[0] - trained
        return (
            f'{self.letter}-{name}: {base / 1e6:.2f} M parameters,'
            f' {trained / 1e6:.2f} M trained ({100 * trained / base:.1f} %),'
            f' and {heads / 1e6:.2f} M of heads\n'
            f'precision {self.trainer.precision}, effective batch'
            f' {self.effective_batch}, learning rate {self.lr:.3g}'
            f' (base {self.options.base_lr:.3g}),'
            f' {self.planned_steps} optimizer steps\n' + self.describe_views()
        )

    @property
    def progress(self) -> float:
        """Optimizer steps done, as a share of those planned."""
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
                ' no-data values; checkpoints written before are intact'
            )
        loss = torch.stack(list(terms.values())).sum()
        size = batch['image'].shape[0]
        self._images += size
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
        """Mark the start of a step."""
        self._idle.begin()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the share of the time in which the device waited for a batch."""
        share = self._idle.end()
        if share is not None:
            # A tensor: copying a plain number to the device would wait for the device.
            self.log('device_idle', torch.tensor(share), batch_size=1)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the objective clip gradients; log their norms and the learning rate."""
        norms = self.objective.before_step(self.progress)
        self.log_dict({f'grad_norm/{name}': norm for name, norm in norms.items()})
        self.log('lr', optimizer.param_groups[0]['lr'])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and log the speed."""
        super().optimizer_step(*args, **kwargs)
        now = time.perf_counter()
        rate = self._images * self.trainer.world_size / (now - self._clock)
        self.log('images_per_second', rate, prog_bar=True)
        self._clock, self._images = now, 0

    def after_optimizer_step(self) -> None:
        """Update the teacher, with the progress that this step's forward pass had."""
        self.objective.after_step(self.progress)

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
        """Return what users of the delta need to know about how it was made.

        `value_range` to `pooling` say which pixels it was trained on, and with which
        view and embedding it was evaluated. Lists and numbers are JSON.
        """
        raw_images = self.raw_images
        bands = raw_images.bands
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        costs = [each for each in callbacks if isinstance(each, Cost)]
        judges = [each.pooling for each in callbacks if isinstance(each, OnlineKNN)]
        return {
            'objective': type(self.objective).__name__,
            'steps': str(self.trainer.global_step),
            'planned_steps': str(self.planned_steps),
            'effective_batch': str(self.effective_batch),
            'mean': str(list(self.view.mean)),
            'std': str(list(self.view.std)),
            'value_range': json.dumps(raw_images.value_range),
            'bands': json.dumps(None if bands is None else list(bands)),
            'quantize': json.dumps(self.quantizes),
            # `Preprocess` does not crop.
            'crop_fraction': json.dumps(1.0),
            'pooling': next(filter(None, judges), self.pooling),
            **(costs[0].metadata() if costs else {}),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the delta, heads and generators; leave the base out."""
        checkpoint['state_dict'] = delta_state_dict(self)
        checkpoint['explora'] = {
            **identity(self.objective.student),
            'micro_steps': self.micro_steps,
            'generators': generator_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the base and the keys before any weight is changed.

        Raises:
            ValueError: If the checkpoint belongs to another base or architecture, or
                has values that are not finite.
        """
        expected = identity(self.objective.student)
        tensors = delta_state_dict(self)
        saved = require_fit(checkpoint, expected, tensors.keys())
        require_values(checkpoint['state_dict'], tensors)
        self.micro_steps = saved['micro_steps']
        self._resumed = saved['generators']

    def delta_writer(self) -> Callable[[Path], None]:
        """Return `save_delta`."""
        return self.save_delta

    def is_current(self, path: Path) -> bool:
        """Return whether a delta file holds the delta as it is now."""
        try:
            metadata, _ = read_delta(path)
        except (OSError, ValueError):
            return False
        delta = delta_state_dict(self.backbone)
        # As `save_delta` stores them.
        tensors = {
            name: tensor.to(
                'cpu', torch.float32 if tensor.is_floating_point() else tensor.dtype
            )
            for name, tensor in delta.items()
        }
        return bool(metadata['delta'] == fingerprint(tensors))

    def finish(self) -> None:
        """Write the final delta, and print where it is."""
        if not self.trainer.is_global_zero:
            return
        folder = self.trainer.default_root_dir
        place, size = write_to(folder, 'delta.safetensors', self.save_delta)
        rank_zero_info(f'delta: {place} ({size / 2**20:.2f} MiB)')
