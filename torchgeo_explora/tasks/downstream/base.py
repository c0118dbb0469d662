"""What all tasks on labelled images share: the backbone, its images, checkpoints."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nan
from torch.nn.functional import max_pool2d
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import Adaptation, adapt, count, delta_state_dict
from torchgeo_explora.augment import CentreCrop
from torchgeo_explora.callbacks.parquet import EmbeddingWriter
from torchgeo_explora.callbacks.raster_writer import RasterWriter
from torchgeo_explora.datamodules.raster_scene import RasterSceneDataModule
from torchgeo_explora.functional.windows import slide
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.tokens import Features
from torchgeo_explora.models.heads.pooling import token_map
from torchgeo_explora.objectives.objective import batch_metadata
from torchgeo_explora.tasks.downstream.collate import explain_mixed_sizes
from torchgeo_explora.tasks.run.backbone import (
    build_backbone,
    fold_delta,
    statistics,
    to_plain,
)
from torchgeo_explora.tasks.run.checkpoint import identity, require_fit, without_delta
from torchgeo_explora.tasks.run.plan import require_replicas
from torchgeo_explora.tasks.run.raw_images import (
    RawImages,
    require_predict_set,
    take_over_normalization,
)
from torchgeo_explora.tasks.run.resumable import ResumableTask

#: Nothing of the backbone trains.
FROZEN = Adaptation((), norms=False, cls_token=False, adapter=None)


class DownstreamTask(ResumableTask):
    """A backbone with its delta folded in, under something that reads labels.

    The data module's own normalisation and augmentation are taken over: the task gets
    raw sensor values, maps them to [0, 1] and normalises as the base was trained.
    Checkpoints hold what trains; the frozen base is left out, and known by its hash.

    Args:
        model: A backbone, by its class path in a configuration, or the name of a timm
            VisionTransformer.
        weights: A path to a checkpoint, a weights enum or its name, True for timm's
            own of a named model, or None for random weights. A given backbone loads
            them by its `start_from`; None leaves it as it is.
        delta: File that a pre-training task or `save_delta` wrote for these weights.
        in_channels: Channels of the images, for a named model (3 if None).
        image_size: Size of the views in pixels; 224 for a named model, that of a given
            backbone if None.
        crop_fraction: Share of each side of an image that evaluation sees; 0.875 is the
            usual centre crop of 224 from 256.
        value_range: (low, high) of the sensor values, scalars or one per channel; found
            from the data module if None.
        mean: Mean of the normalisation, of values in [0, 1]; the delta's or the base's
            if None.
        std: Standard deviation, likewise.
        model_args: Further arguments of a named model (`embed_dim`, `depth`, ...).
        seed: Seed of augmentation and of the order of the images.
    """

    ignore: tuple[str, ...] = ('model', 'weights', 'augmentations')
    backbone: Backbone
    #: Writes what `predict_batch` returns.
    writer: type[Callback] = EmbeddingWriter
    #: Whether `dense` gives probabilities of classes, and a map shows the likeliest.
    labels_cells = False

    def __init__(
        self,
        model: Backbone | str = 'vit_large_patch14_dinov2.lvd142m',
        # bool first: a command line's `true` is no name.
        weights: bool | WeightsEnum | str | None = True,
        delta: str | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        crop_fraction: float = 1.0,
        value_range: tuple[Any, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        model_args: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Build the backbone and what reads it."""
        # A tuple hides the module: none may be assigned before `Module.__init__`.
        self._given = (model, weights)
        super().__init__(
            weights, in_channels, image_size, value_range, mean, std, model_args, seed
        )
        self.save_hyperparameters(
            {
                'model': to_plain(model),
                'weights': weights
                if isinstance(weights, bool | None)
                else str(weights),
            }
        )
        self.raw_images: Any = None
        self._trained_range: list[list[float]] | None = None

    @abstractmethod
    def configure_heads(self) -> None:
        """Adapt `self.backbone`, and build what reads it."""

    def configure_models(self) -> None:
        """Build the backbone and what reads it."""
        hparams = self.hparams
        model, weights = self._given
        self.backbone = build_backbone(
            model,
            weights,
            hparams['in_channels'],
            hparams['image_size'],
            model_args=hparams['model_args'],
        )
        self.backbone.record.extras = {}
        if hparams['delta']:
            self.backbone = fold_delta(self.backbone, hparams['delta'])
        self.mean, self.std = statistics(self.backbone, hparams['mean'], hparams['std'])
        self.image_size = hparams['image_size'] or self.backbone.image_size[0]
        self.view = CentreCrop(
            self.image_size, hparams['crop_fraction'], self.mean, self.std
        )
        self.configure_heads()

    def freeze_backbone(self) -> None:
        """Let nothing of the backbone train, and keep it in evaluation."""
        adapt(self.backbone, FROZEN).eval()

    # Images -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take over the data module's normalisation, and find the bands it gives."""
        datamodule = getattr(self.trainer, 'datamodule', None)
        if stage == 'predict':
            require_predict_set(datamodule)
        given = self.hparams['value_range']
        self.raw_images = RawImages(self.backbone, datamodule, given).to(self.device)
        self.raw_images.compare(self._trained_range)
        take_over_normalization(datamodule)
        explain_mixed_sizes(datamodule)
        if stage == 'fit':
            require_replicas(self.trainer)
            # A trainer that pre-trained before would write that delta again.
            strategy = self.trainer.strategy
            strategy.checkpoint_io = without_delta(strategy.checkpoint_io)
            # A frozen backbone is in eval mode by design.
            warnings.filterwarnings('ignore', r'Found \d+ module\(s\) in eval mode')

    def unit_image(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images of a batch in [0, 1]."""
        image: Tensor = self.raw_images(batch['image'])
        return image

    def features(self, view: Tensor, batch: Mapping[str, Any]) -> Features:
        """Return the backbone's features of views, with the metadata of their batch."""
        features: Features = self.backbone(view, **batch_metadata(batch))
        return features

    def dense(self, image: Tensor) -> Tensor:
        """Return what a map of a scene shows: here the patch tokens as they are.

        Args:
            image: In [0, 1], (B, C, S, S), S a multiple of the patch.

        Returns:
            (B, K, h, w), `cell` pixels of the image for each value.
        """
        view = self.view.normalize(image.clone())
        side = image.shape[-1] // self.cell
        return token_map(self.backbone(view).patch, (side, side)).float()

    @property
    def cell(self) -> int:
        """Pixels along each side of a value of `dense`."""
        return self.backbone.patch_size

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        """Return what `predict_batch` says of images, or the map of a scene's block."""
        return self.map_block(batch) if 'block' in batch else self.predict_batch(batch)

    @abstractmethod
    def predict_batch(self, batch: dict[str, Any]) -> Any:
        """Return predictions for a raw batch, an entry for each image."""

    def map_block(self, batch: dict[str, Any]) -> Tensor:
        """Return the map of a block of `RasterBlocks`.

        Returns:
            Classes (1, h, w) uint8, 255 where there is no data; or tokens (D, h, w),
            NaN where there is none. A cell has data if one of its pixels has.

        Raises:
            ValueError: If there are more classes than 8 bits hold.
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
                f'a map holds up to 255 classes beside no data, the task has'
                f' {len(scores)}: write embeddings with ExploraKNNTask instead'
            )
        if len(scores):
            winners = scores[:, *inside].argmax(0, keepdim=True).to(torch.uint8)
            classes = torch.where(known, winners, classes)
        return classes

    # The run ------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Write what `predict` returns, unless the user has a writer."""
        datamodule = getattr(self.trainer, 'datamodule', None)
        scene = isinstance(datamodule, RasterSceneDataModule)
        kind = RasterWriter if scene else self.writer
        given = self.trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, kind) for callback in given):
            return []
        return [kind()]

    def summary(self) -> str:
        """Return what is about to run."""
        trained, size = count(self.backbone)
        heads = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return (
            f'{type(self).__name__}: backbone of {size / 1e6:.2f} M parameters,'
            f' {trained / 1e6:.3f} M of them or in its adapters trained, and'
            f' {(heads - trained) / 1e6:.3f} M beside it'
        )

    # What is kept -------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base out."""
        checkpoint['state_dict'] = delta_state_dict(self)
        checkpoint['explora'] = {
            **identity(self.backbone),
            'micro_steps': self.micro_steps,
            'value_range': self.raw_images.value_range,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the base and the keys before a weight is touched.

        Raises:
            ValueError: If the checkpoint belongs to another base or architecture.
        """
        keys = delta_state_dict(self).keys()
        saved = require_fit(checkpoint, identity(self.backbone), keys)
        self.micro_steps = saved['micro_steps']
        self._trained_range = saved.get('value_range')
        # Lightning sets a task up before it loads a checkpoint, a user may after.
        if self.raw_images is not None:
            self.raw_images.compare(self._trained_range)
