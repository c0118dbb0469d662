"""Fine-tuning a backbone to classify every pixel."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)
from torchmetrics.wrappers import ClasswiseWrapper

from torchgeo_explora.augment.crops import random_patches
from torchgeo_explora.callbacks.figures import save_figure, shown_channels
from torchgeo_explora.callbacks.writers.parquet import MaskWriter
from torchgeo_explora.functional.windows import slide
from torchgeo_explora.models.heads.pooling import token_map
from torchgeo_explora.models.heads.segmenter import SegmentationHead
from torchgeo_explora.objectives.objective import batch_metadata
from torchgeo_explora.tasks.downstream.base import DownstreamTask
from torchgeo_explora.tasks.downstream.batches import (
    PadSizes,
    check_labels,
    check_lengths,
    wrap_collate,
)
from torchgeo_explora.tasks.downstream.mistakes import (
    Example,
    Worst,
    class_names,
    draw_masks,
    place_of,
    small_mask,
    small_picture,
    with_paths,
    write_confusion,
    write_worst_masks,
)
from torchgeo_explora.tasks.downstream.options import FinetuningOptions

# Class of pixels that do not count, whatever value the data set uses.
_IGNORED = -1
_PICTURES = 4


class ExploraSegmentationTask(DownstreamTask):
    """Semantic segmentation with a decoder on four blocks of a plain ViT.

    For how the backbone is trained, see `FinetuningOptions`. Training sees random
    patches of *image_size*, rotated and mirrored; evaluation sees whole images of any
    size, in overlapping windows of *image_size* that are blended. Images of mixed sizes
    are padded, and the padding does not count.

    TorchGeo's SpaceNet data modules number their classes from 1 and use 0 for padding:
    set `num_classes: 3` and `ignore_index: 0`. The mean IoU is then taken over the
    other classes, which are the only ones predicted.

    Metrics: `mIoU`, the IoU of each class, and the share of correct pixels.
    `segmentation.png` shows prediction and truth after each validation. After each
    validation and test, `confusion_val.csv` or `confusion_test.csv` and its `.png` hold
    the confusion matrix of the pixels, and `worst_val.csv` or `worst_test.csv` and its
    `.png` show the images with the highest cross-entropy.
    """

    monitor = 'val_mIoU'
    mode = 'max'
    labels_cells = True
    writer = MaskWriter
    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        labels: list[str] | None = None,
        ignore_index: int | None = None,
        no_data: float | None = None,
        decoder: Literal['upernet', 'dpt', 'linear'] = 'upernet',
        decoder_channels: int = 256,
        class_weights: list[float] | None = None,
        overlap: float = 0.25,
        **finetuning: Any,
    ) -> None:
        """Build the backbone, the adapter and the decoder.

        Args:
            num_classes: Number of classes, including an ignored one if it is in [0,
                num_classes).
            labels: Names of the classes.
            ignore_index: Value in the mask of pixels that do not count.
            no_data: Sensor value that means no data if all bands have it; such pixels
                do not count. NaN always means no data.
            decoder: 'upernet', 'dpt' or 'linear'.
            decoder_channels: Width of UPerNet and DPT.
            class_weights: Weight of each class in the loss.
            overlap: Share of a window that the next one covers again, in [0, 1).
            **finetuning: See `FinetuningOptions`: model, weights, delta, adapter, rates
                and so on.

        Raises:
            ValueError: If *labels* or *class_weights* do not have one entry per class,
                or the overlap is out of range.
        """
        check_lengths(num_classes, labels=labels, class_weights=class_weights)
        if not 0 <= overlap < 1:
            raise ValueError(f'*overlap* is {overlap}: choose from 0 to below 1')
        super().__init__(FinetuningOptions(**finetuning))

    def configure_heads(self) -> None:
        """Build the decoder and adapt the backbone."""
        hparams = self.hparams
        depth = len(self.backbone.blocks)
        if depth < 4:
            raise ValueError(
                f'the decoder reads 4 blocks, the backbone has {depth}: choose a deeper'
                ' *model*'
            )
        self.taps = [(i + 1) * depth // 4 - 1 for i in range(4)]
        self.head = SegmentationHead(
            self.backbone.embed_dim,
            hparams['num_classes'],
            hparams['decoder'],
            hparams['decoder_channels'],
        )
        self.adapt_backbone()
        weights = hparams['class_weights']
        self.register_buffer(
            'class_weights',
            None if weights is None else torch.tensor(weights),
            persistent=False,
        )

    def configure_metrics(self) -> None:
        """Build the metrics of evaluation."""
        classes, labels = self.hparams['num_classes'], self.hparams['labels']
        arguments: dict[str, Any] = {
            'num_classes': classes,
            'ignore_index': _IGNORED,
        }
        metrics = MetricCollection(
            {
                'mIoU': MulticlassJaccardIndex(average='macro', **arguments),
                'accuracy': MulticlassAccuracy(average='micro', **arguments),
                'IoU': ClasswiseWrapper(
                    MulticlassJaccardIndex(average='none', **arguments),
                    labels,
                    prefix='IoU_',
                ),
            }
        )
        self.val_metrics = metrics.clone(prefix='val_')
        self.test_metrics = metrics.clone(prefix='test_')
        self.confusion = MulticlassConfusionMatrix(**arguments)
        self.worst = Worst(6)

    def setup(self, stage: str) -> None:
        """Prepare images and masks, including those of mixed sizes."""
        ignored = self.hparams['ignore_index']
        # A value that no class has: `_targets` ignores it.
        fill = {'image': torch.nan, 'mask': _IGNORED if ignored is None else ignored}
        datamodule = getattr(self.trainer, 'datamodule', None)
        wrap_collate(datamodule, lambda collate: PadSizes(collate, fill))
        super().setup(stage)

    def _targets(self, batch: dict[str, Any]) -> Tensor:
        """Return the masks of a batch, (B, H, W), -1 where pixels do not count.

        Raises:
            ValueError: If a mask holds an unknown value.
        """
        mask = batch['mask']
        if mask.is_floating_point() and (mask != mask.round()).any():
            raise ValueError(
                f'the masks hold {mask[mask != mask.round()][:4].tolist()}, expected'
                ' integers: the numbers of classes'
            )
        mask = mask.long()
        if mask.ndim == 4:
            mask = mask.squeeze(1)
        image, no_data = batch['image'], self.hparams['no_data']
        missing = image.isnan().any(-3)
        if no_data is not None:
            missing = missing | (image == no_data).all(-3)
        missing = missing | (mask == _IGNORED)
        if (ignored := self.hparams['ignore_index']) is not None:
            missing = missing | (mask == ignored)
        check_labels(mask[~missing], self.hparams['num_classes'], ignored)
        return mask.masked_fill(missing, _IGNORED)

    def forward(self, view: Tensor, **metadata: Tensor) -> Tensor:
        """Return logits of normalised images, (B, C, H, W) -> (B, classes, H, W).

        H and W are multiples of the patch size.
        """
        size = view.shape[-2:]
        grid = (
            size[0] // self.backbone.patch_size,
            size[1] // self.backbone.patch_size,
        )
        features = self.backbone.features(view, self.taps, **metadata)
        maps = [token_map(feature.patch, grid) for feature in features]
        logits: Tensor = self.head(maps, size)
        return logits.float()

    def dense(self, image: Tensor) -> Tensor:
        """Return the class probabilities of each pixel, 0 for an ignored class.

        Args:
            image: In [0, 1], (B, C, S, S).
        """
        logits = self(self.view.normalize(image.clone()))
        ignored = self.hparams['ignore_index']
        if ignored is not None and 0 <= ignored < logits.shape[1]:
            logits[:, ignored] = -torch.inf
        return logits.softmax(1)

    @property
    def cell(self) -> int:
        """1: every pixel has a value of its own."""
        return 1

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the cross-entropy of the pixels that count."""
        targets = self._targets(batch)
        image = self.unit_image(batch)
        with self.seeded():
            image, targets = random_patches(image, targets, self.image_size, _IGNORED)
            logits = self(self.view.normalize(image), **batch_metadata(batch))
        loss = cross_entropy(
            logits, targets, self.class_weights, ignore_index=_IGNORED, reduction='sum'
        ) / (targets != _IGNORED).sum().clamp(min=1)
        self.log_loss(loss, 'train', len(image))
        return loss

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Evaluate whole images, and draw some of the first batch."""
        image, targets, predicted = self._evaluate(batch, 'val')
        if batch_idx == 0 and self.trainer.is_global_zero:
            self._draw(image, targets, predicted)

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Evaluate whole images."""
        self._evaluate(batch, 'test')

    def _evaluate(
        self, batch: dict[str, Any], split: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        targets = self._targets(batch)
        image = self.unit_image(batch)
        probabilities = self.sliding(image)
        predicted = probabilities.argmax(1)
        counted = targets != _IGNORED
        if counted.any():
            loss = nll_loss(
                probabilities.clamp(min=1e-8).log(), targets, ignore_index=_IGNORED
            )
            self.log_loss(loss, split, len(image))
            getattr(self, f'{split}_metrics').update(predicted, targets)
            self.confusion.update(predicted, targets)
            self._keep_worst(batch, image, targets, probabilities)
        return image, targets, predicted

    def _keep_worst(
        self,
        batch: dict[str, Any],
        image: Tensor,
        targets: Tensor,
        probabilities: Tensor,
    ) -> None:
        """Keep the images of a batch with the highest mean loss per pixel."""
        losses = nll_loss(
            probabilities.clamp(min=1e-8).log(),
            targets,
            ignore_index=_IGNORED,
            reduction='none',
        )
        counted = (targets != _IGNORED).flatten(1).sum(1)
        means = losses.flatten(1).sum(1) / counted

        def example(index: int, loss: float) -> Example:
            # Without padding.
            size = batch['size'][index] if 'size' in batch else image.shape[-2:]
            inside = (slice(int(size[0])), slice(int(size[1])))
            return Example(
                loss,
                small_picture(self.backbone, image[index][..., *inside]),
                small_mask(targets[index][inside]),
                small_mask(probabilities[index].argmax(0)[inside]),
                *place_of(batch, index),
            )

        self.worst.take(means.where(counted > 0, -torch.inf), example)

    def sliding(self, image: Tensor) -> Tensor:
        """Return the probabilities of images in [0, 1] of any size, (B, K, H, W)."""
        stride = max(1, int(self.image_size * (1 - self.hparams['overlap'])))
        return slide(image, self.image_size, stride, self.dense)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log('val')

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log('test')

    def _log(self, split: str) -> None:
        metrics = getattr(self, f'{split}_metrics')
        self.log_dict(metrics.compute())
        metrics.reset()
        counts = self.confusion.compute()
        self.confusion.reset()
        examples = self.worst.drain(self.trainer.world_size)
        if self.leaves_files:
            classes, dataset = len(counts), self.dataset_of(split)
            names = class_names(dataset, classes, self.hparams['labels'])
            write_confusion(self.trainer, counts, names, split)
            examples = with_paths(examples, dataset)
            write_worst_masks(self.trainer, examples, classes, split)

    def _draw(self, image: Tensor, targets: Tensor, predicted: Tensor) -> None:
        """Draw images, truth and predictions side by side."""
        if not self.leaves_files:
            return
        channels = shown_channels(self.backbone, None)
        rows = [*zip(image[:, channels], targets, predicted, strict=True)][:_PICTURES]
        figure = draw_masks(rows, self.hparams['num_classes'])
        save_figure(figure, 'segmentation', self.trainer)

    def predict_batch(self, batch: dict[str, Any]) -> list[Tensor]:
        """Return the class of each pixel, (H, W) int64 in the size of each image."""
        classes = self.sliding(self.unit_image(batch)).argmax(1)
        sizes = batch.get('size', torch.tensor([classes.shape[1:]] * len(classes)))
        return [
            mask[:height, :width]
            for mask, (height, width) in zip(classes, sizes.tolist(), strict=True)
        ]
