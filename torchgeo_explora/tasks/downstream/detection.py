"""Fine-tuning a backbone to detect objects."""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from torchgeo_explora.callbacks.writers.parquet import DetectionWriter
from torchgeo_explora.models.heads.detector import TokenPyramid, build_detector
from torchgeo_explora.models.heads.pooling import token_map
from torchgeo_explora.tasks.downstream.base import DownstreamTask
from torchgeo_explora.tasks.downstream.batches import (
    PadSizes,
    check_labels,
    wrap_collate,
)
from torchgeo_explora.tasks.downstream.options import FinetuningOptions


class ExploraDetectionTask(DownstreamTask):
    """Object detection with torchvision's heads on ViTDet's simple feature pyramid.

    Li et al., *ViTDet* (https://arxiv.org/abs/2203.16527). For how the backbone is
    trained, see `FinetuningOptions`. Unlike in ViTDet, attention is global in every
    block, as in the base's training.

    Batches are TorchGeo's: `image` (B, C, H, W), `bbox_xyxy` and `label` as lists with
    one entry per image; label 0 is the background. Images keep their size; if sizes are
    mixed, images are padded. Boxes without area are left out.

    Metrics are COCO's: `val_map`, `val_map_50`, ...
    """

    monitor = 'val_map'
    mode = 'max'
    writer = DetectionWriter

    def __init__(
        self,
        num_classes: int,
        detector: Literal['faster-rcnn', 'fcos'] = 'faster-rcnn',
        anchors: list[float] | None = None,
        pyramid_channels: int = 256,
        **finetuning: Any,
    ) -> None:
        """Build the backbone, the adapter, the pyramid and the detector.

        Args:
            num_classes: Number of classes, including the background.
            detector: 'faster-rcnn', with two stages, or 'fcos', with one stage and no
                anchors.
            anchors: Sides of the anchors of the five levels, in pixels; 2 to 32 patches
                if None.
            pyramid_channels: Number of channels of each level.
            **finetuning: See `FinetuningOptions`: model, weights, delta, adapter, rates
                and so on.
        """
        super().__init__(FinetuningOptions(**finetuning))
        self._warned = False

    def configure_heads(self) -> None:
        """Build the detector and adapt the backbone."""
        hparams = self.hparams
        self.adapt_backbone()
        pyramid = TokenPyramid(
            self._tokens, self.backbone.embed_dim, hparams['pyramid_channels']
        )
        self.detector = build_detector(
            hparams['detector'],
            pyramid,
            hparams['num_classes'],
            self.backbone.patch_size,
            hparams['anchors'],
        )

    def _tokens(self, image: Tensor) -> Tensor:
        patch = self.backbone.patch_size
        grid = (image.shape[-2] // patch, image.shape[-1] // patch)
        return token_map(self.backbone(image).patch, grid)

    def configure_metrics(self) -> None:
        """Build the metrics of evaluation."""
        self.val_metrics = MeanAveragePrecision()
        self.test_metrics = MeanAveragePrecision()

    def setup(self, stage: str) -> None:
        """Prepare the images, including those of mixed sizes."""
        datamodule = getattr(self.trainer, 'datamodule', None)
        wrap_collate(datamodule, lambda collate: PadSizes(collate, {'image': 0.0}))
        super().setup(stage)

    def forward(
        self, image: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> Any:
        """Return losses in training and boxes otherwise, for images in [0, 1]."""
        return self.detector(self.view.normalize(image.clone()), targets)

    def _targets(self, batch: dict[str, Any]) -> list[dict[str, Tensor]]:
        """Return boxes and labels of each image, without boxes that have no area.

        Raises:
            ValueError: If a label has no output, or is the background's.
        """
        targets = []
        for boxes, labels in zip(batch['bbox_xyxy'], batch['label'], strict=True):
            boxes = boxes.float().view(-1, 4)
            check_labels(labels, self.hparams['num_classes'])
            if (labels == 0).any():
                raise ValueError(
                    'boxes have label 0, which is the background: number the classes of'
                    ' objects from 1, and include the background in *num_classes*'
                )
            real = (boxes[:, 2:] > boxes[:, :2]).all(1)
            if not self._warned and not real.all():
                first = boxes[~real][0].tolist()
                rank_zero_warn(f'boxes without area are left out, such as {first}')
                self._warned = True
            targets.append({'boxes': boxes[real], 'labels': labels.long()[real]})
        return targets

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the sum of the detector's losses."""
        image, targets = self.unit_image(batch), self._targets(batch)
        with self.seeded():
            image, targets = _mirrored(image, targets)
            losses: dict[str, Tensor] = self(image, targets)
        self.log_dict(
            {f'train_{n}': v for n, v in losses.items()}, batch_size=len(image)
        )
        loss = torch.stack(list(losses.values())).sum()
        self.log_loss(loss, 'train', len(image))
        return loss

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compare the detected boxes with the true ones."""
        self.val_metrics.update(self(self.unit_image(batch)), self._targets(batch))

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compare the detected boxes with the true ones."""
        self.test_metrics.update(self(self.unit_image(batch)), self._targets(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log('val', self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log('test', self.test_metrics)

    def _log(self, split: str, metrics: MeanAveragePrecision) -> None:
        values = {k: v for k, v in metrics.compute().items() if k.startswith('ma')}
        metrics.reset()
        self.log_dict(
            {f'{split}_{k}': v.float() for k, v in values.items() if v.numel() == 1}
        )

    def dense(self, image: Tensor) -> Tensor:
        """Refuse to map a scene.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            'detected objects do not make a map: cut the scene into images, or use'
            ' another task with RasterSceneDataModule'
        )

    def predict_batch(self, batch: dict[str, Any]) -> list[dict[str, Tensor]]:
        """Return boxes, labels and scores of each image."""
        found: list[dict[str, Tensor]] = self(self.unit_image(batch))
        return found


def _mirrored(
    image: Tensor, targets: list[dict[str, Tensor]]
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Mirror a batch and its boxes, half of the time along each axis."""
    for axis, (first, last) in ((-1, (0, 2)), (-2, (1, 3))):
        if torch.rand(()) < 0.5:
            image, mirrored = image.flip(axis), []
            for target in targets:
                boxes = target['boxes'].clone()
                boxes[:, first] = image.shape[axis] - target['boxes'][:, last]
                boxes[:, last] = image.shape[axis] - target['boxes'][:, first]
                mirrored.append(target | {'boxes': boxes})
            targets = mirrored
    return image, targets
