"""What tasks on labelled images share: the backbone, maps and checkpoints."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nan
from torch.nn.functional import max_pool2d

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    count,
    delta_state_dict,
    read_delta_metadata,
)
from torchgeo_explora.augment import CentreCrop
from torchgeo_explora.callbacks.defaults import downstream_callbacks, prediction_writers
from torchgeo_explora.callbacks.writers.parquet import EmbeddingWriter
from torchgeo_explora.callbacks.writers.raster_writer import RasterWriter
from torchgeo_explora.datamodules.raster_scene import RasterSceneDataModule
from torchgeo_explora.functional.windows import slide
from torchgeo_explora.models.backbones.prompts import Prompts
from torchgeo_explora.models.backbones.tokens import Features, Pooling
from torchgeo_explora.models.heads.pooling import token_map
from torchgeo_explora.objectives.objective import batch_metadata
from torchgeo_explora.tasks.downstream.batches import explain_mixed_sizes
from torchgeo_explora.tasks.downstream.finetuning import FineTuning
from torchgeo_explora.tasks.downstream.options import (
    DownstreamOptions,
    FinetuningOptions,
)
from torchgeo_explora.tasks.downstream.recorded import recorded, warn_of_differences
from torchgeo_explora.tasks.run.backbone import build_backbone, fold_delta, statistics
from torchgeo_explora.tasks.run.checkpoint import identity, require_fit
from torchgeo_explora.tasks.run.plan import require_replicas
from torchgeo_explora.tasks.run.raw_images import band_names
from torchgeo_explora.tasks.run.refusal import told_by_command
from torchgeo_explora.tasks.run.resumable import ResumableTask

#: Nothing in the backbone is trained.
FROZEN = Adaptation((), norms=False, cls_token=False, adapter=None)


class DownstreamTask(ResumableTask):
    """A backbone with its delta folded in, for a task on labelled images.

    Checkpoints hold the trained parameters; the frozen base is left out, and identified
    by its hash.

    A subclass declares its own arguments, and takes `**downstream` or `**finetuning`
    for those of `DownstreamOptions` or `FinetuningOptions`. It builds its head in
    `configure_heads`.

    Args:
        options: Where the task starts, and with `FinetuningOptions` how the backbone is
            trained.
    """

    ignore: tuple[str, ...] = (
        *('options', 'model', 'weights', 'adapter', 'augmentations'),
    )
    options: DownstreamOptions
    #: Visual prompts in the backbone.
    prompts: Prompts | None
    #: Writes what `predict_batch` returns.
    writer: type[Callback] = EmbeddingWriter
    #: Whether `dense` gives class probabilities, so that a map shows the likeliest one.
    labels_cells = False
    #: How tokens become an image's features, if these are evaluated directly; None if a
    #: head reads the tokens in its own way.
    pooling: Pooling | None = None

    def __init__(self, options: DownstreamOptions) -> None:
        """Build the backbone and its head."""
        #: None if the backbone stays frozen.
        self.tuning = (
            FineTuning(options) if isinstance(options, FinetuningOptions) else None
        )
        super().__init__(options)
        self._trained_range: list[list[float]] | None = None

    @abstractmethod
    def configure_heads(self) -> None:
        """Call `adapt_backbone`, and build the head on the backbone."""

    @told_by_command()
    def configure_models(self) -> None:
        """Build the backbone and its head."""
        options = self.options
        self.backbone = build_backbone(
            options.model,
            options.weights,
            options.in_channels,
            options.image_size,
            model_args=options.model_args,
            delta=options.delta,
        )
        self.backbone.record.take_extras()
        #: What the delta says about its run and has not been compared yet.
        self.recorded: dict[str, Any] = {}
        if options.delta:
            self.backbone = fold_delta(self.backbone, options.delta)
            self.recorded = recorded(read_delta_metadata(options.delta))
            self.backbone.pooling = self.recorded.get('pooling', self.backbone.pooling)
        self.mean, self.std = statistics(self.backbone, options.mean, options.std)
        self.image_size = options.image_size or self.backbone.image_size[0]
        self.view = CentreCrop(
            self.image_size, options.crop_fraction, self.mean, self.std
        )
        self.configure_heads()

    def adapt_backbone(self) -> None:
        """Make the chosen parts of the backbone trainable, and freeze the rest.

        A head that changes the backbone must do so first.
        """
        if self.tuning is None:
            adapt(self.backbone, FROZEN).eval()
        else:
            self.prompts = self.tuning.adapt(self.backbone)

    # Images -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Prepare the images, and compare their range with the one used in training."""
        super().setup(stage)
        self.raw_images.compare(self._trained_range)
        warn_of_differences(self.recorded, self._seen(), self.options.delta)
        self.recorded = {}
        explain_mixed_sizes(getattr(self.trainer, 'datamodule', None))
        if stage == 'fit':
            require_replicas(self.trainer)

    def _seen(self) -> dict[str, Any]:
        """Return how the task sees and evaluates images, as deltas record it."""
        bands = self.backbone.bands
        bands = bands or band_names(getattr(self.trainer, 'datamodule', None))
        seen = {
            'value_range': self.raw_images.value_range,
            'bands': None if bands is None else list(bands),
            'quantize': False,
        }
        if self.pooling is None:
            return seen
        return seen | {
            'crop_fraction': self.options.crop_fraction,
            'pooling': self.pooling,
        }

    def features(self, view: Tensor, batch: Mapping[str, Any]) -> Features:
        """Return the backbone's features of views, with the metadata of their batch."""
        features: Features = self.backbone(view, **batch_metadata(batch))
        return features

    def dense(self, image: Tensor) -> Tensor:
        """Return the values that a map of a scene shows: here the patch tokens.

        Args:
            image: In [0, 1], (B, C, S, S), S a multiple of the patch size.

        Returns:
            (B, K, h, w); one value stands for `cell` x `cell` pixels.
        """
        view = self.view.normalize(image.clone())
        side = image.shape[-1] // self.cell
        return token_map(self.backbone(view).patch, (side, side)).float()

    @property
    def cell(self) -> int:
        """Side, in pixels, of the square that a value of `dense` stands for."""
        return self.backbone.patch_size

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        """Return the predictions for images, or the map of a block of a scene."""
        return self.map_block(batch) if 'block' in batch else self.predict_batch(batch)

    @abstractmethod
    def predict_batch(self, batch: dict[str, Any]) -> Any:
        """Return predictions for a raw batch, one for each image."""

    def map_block(self, batch: dict[str, Any]) -> Tensor:
        """Return the map of a block of `RasterBlocks`.

        Returns:
            Classes (1, h, w) uint8, 255 where there is no data; or tokens (D, h, w),
            NaN where there is no data. A cell has data if any of its pixels has data.

        Raises:
            ValueError: If there are more classes than fit into 8 bits.
        """
        scene: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        valid, (top, left) = (
            batch['valid'][0],
            (batch['inside'][0] // self.cell).tolist(),
        )
        scores = slide(
            self.unit_image(batch),
            scene.size,
            scene.stride,
            self.dense,
            self.cell,
            valid=valid,
        )[0]
        known = max_pool2d(
            valid[None].float(), self.cell, self.cell, ceil_mode=True
        ).bool()
        side = scene.block // self.cell
        inside = (slice(top, top + side), slice(left, left + side))
        known = known[:, *inside]
        if not self.labels_cells:
            tokens = scores.new_full((self.backbone.embed_dim, *known.shape[1:]), nan)
            return (
                torch.where(known, scores[:, *inside], tokens)
                if len(scores)
                else tokens
            )
        classes = torch.full_like(known, 255, dtype=torch.uint8)
        if len(scores) > 255:
            raise ValueError(
                f'a map holds up to 255 classes, but the task has {len(scores)}: write'
                ' embeddings with ExploraKNNTask instead'
            )
        if len(scores):
            winners = scores[:, *inside].argmax(0, keepdim=True).to(torch.uint8)
            classes = torch.where(known, winners, classes)
        return classes

    # The run ------------------------------------------------------------------------

    def dataset_of(self, split: str) -> Any:
        """Return a data set of the trainer's data module, None if it has none.

        Args:
            split: 'train', 'val', 'test' or 'predict'.
        """
        datamodule = getattr(self.trainer, 'datamodule', None)
        return getattr(datamodule, f'{split}_dataset', None)

    @property
    def leaves_files(self) -> bool:
        """Whether an evaluation writes its results: a trial run leaves no files."""
        trainer: Any = self.trainer
        return not (trainer.sanity_checking or trainer.fast_dev_run)

    def configure_callbacks(self) -> list[Callback]:
        """Return callbacks: a writer of predictions, or the best and last checkpoints.

        A callback given by the user replaces the one of its kind.
        """
        if self.trainer.state.fn != 'predict':
            return downstream_callbacks(self.trainer, self.monitor, self.mode)
        datamodule = getattr(self.trainer, 'datamodule', None)
        scene = isinstance(datamodule, RasterSceneDataModule)
        return prediction_writers(self.trainer, RasterWriter if scene else self.writer)

    def configure_optimizers(self) -> Any:
        """Plan the fine-tuning."""
        assert self.tuning is not None, (
            'a task with a frozen backbone plans its own run'
        )
        inside = {id(p) for p in self.backbone.parameters()}
        others = [p for p in self.parameters() if id(p) not in inside]
        return self.tuning.optimizers(self.trainer, self.backbone, others)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the penalty of fine-tuning."""
        if self.tuning is not None:
            accumulated = self.trainer.accumulate_grad_batches
            loss = self.tuning.penalized(loss, accumulated)
        super().backward(loss, *args, **kwargs)

    def after_optimizer_step(self) -> None:
        """Let fine-tuning update what has no gradient."""
        if self.tuning is not None:
            self.tuning.after_step(self.trainer.global_step + 1)

    def log_loss(self, loss: Tensor, split: str, size: int) -> None:
        """Log a loss, and stop if the training loss is not finite.

        Raises:
            FloatingPointError: If the training loss is not finite.
        """
        if split == 'train' and not loss.isfinite():
            raise FloatingPointError(
                f'the loss is not finite at optimizer step {self.trainer.global_step}:'
                ' lower base_lr, or look for images with no-data values'
            )
        self.log(f'{split}_loss', loss, prog_bar=True, batch_size=size)

    def summary(self) -> str:
        """Describe the run that is about to start."""
        trained, size = count(self.backbone)
        everything = sum(p.numel() for p in self.parameters() if p.requires_grad)
        line = (
            f'{type(self).__name__}: backbone of {size / 1e6:.2f} M parameters;'
            f' {trained / 1e6:.3f} M trained in it or its adapters, and'
            f' {(everything - trained) / 1e6:.3f} M outside it'
        )
        return line if self.tuning is None else f'{line}\n{self.tuning.summary()}'

    # What is kept -------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the frozen base."""
        checkpoint['state_dict'] = delta_state_dict(self)
        checkpoint['explora'] = {
            **identity(self.backbone),
            'micro_steps': self.micro_steps,
            'value_range': self.raw_images.value_range,
            **({} if self.tuning is None else self.tuning.state()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the base and the keys before any weight is loaded.

        Raises:
            ValueError: If the checkpoint belongs to another base or architecture.
        """
        keys = delta_state_dict(self).keys()
        saved = require_fit(checkpoint, identity(self.backbone), keys)
        self.micro_steps = saved['micro_steps']
        self._trained_range = saved.get('value_range')
        if self.tuning is not None:
            self.tuning.load_state(saved)
        # Lightning sets a task up before it loads a checkpoint; a user may do it after.
        if self.raw_images is not None:
            self.raw_images.compare(self._trained_range)
