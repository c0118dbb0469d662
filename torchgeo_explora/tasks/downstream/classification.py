"""Fine-tuning a backbone to classify images."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchgeo.tasks.mixins import ClassificationMixin
from torchmetrics.classification import MulticlassConfusionMatrix

from torchgeo_explora.augment import SingleCrop
from torchgeo_explora.callbacks.writers.parquet import ProbabilityWriter
from torchgeo_explora.models.heads.pooling import PooledHead
from torchgeo_explora.tasks.downstream.base import DownstreamTask
from torchgeo_explora.tasks.downstream.batches import (
    check_labels,
    check_lengths,
    labels_of,
)
from torchgeo_explora.tasks.downstream.mistakes import (
    Example,
    Worst,
    class_names,
    label_losses,
    place_of,
    small_picture,
    with_paths,
    write_mistakes,
)
from torchgeo_explora.tasks.downstream.options import FinetuningOptions


class ExploraClassificationTask(ClassificationMixin, DownstreamTask):
    """TorchGeo's image classification on a backbone with its delta folded in.

    Losses, metrics, their names and the batches are those of TorchGeo's
    `Classification`. For how the backbone is trained, see `FinetuningOptions`. Label
    smoothing is added. After each validation and test, `confusion_val.csv` or
    `confusion_test.csv` and its `.png` hold the confusion matrix if each image has one
    class, and `worst_val.csv` or `worst_test.csv` and its `.png` show the images with
    the highest cross-entropy. `predict` gives probabilities.
    """

    monitor = 'val_OverallAccuracy'
    mode = 'max'
    labels_cells = True
    writer = ProbabilityWriter
    options: FinetuningOptions

    def __init__(
        self,
        task: Literal['binary', 'multiclass', 'multilabel'] = 'multiclass',
        num_classes: int | None = None,
        num_labels: int | None = None,
        labels: list[str] | None = None,
        loss: Literal['ce', 'bce', 'jaccard', 'focal', 'dice'] | None = None,
        class_weights: Sequence[float] | None = None,
        pos_weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.1,
        pooling: Literal['mean', 'cls'] = 'mean',
        crop_scale: tuple[float, float] = (0.2, 1.0),
        augmentations: nn.Module | None = None,
        **finetuning: Any,
    ) -> None:
        """Build the backbone, the adapter and the classifier.

        Args:
            task: 'binary' for two classes, 'multiclass' for several, 'multilabel' for
                several labels per image.
            num_classes: Number of classes, for 'multiclass'; 'binary' always has two.
            num_labels: Number of labels, for 'multilabel'.
            labels: Names of the classes, for metrics and pictures.
            loss: One of TorchGeo's; if None, 'ce' for 'multiclass' and 'bce' otherwise.
            class_weights: Weight of each class in 'ce'.
            pos_weight: Weight of positive examples in 'bce'.
            ignore_index: Label of images that do not count.
            label_smoothing: Label smoothing of 'ce'. The authors' code keeps MAE's 0.1.
            pooling: 'mean' for the mean patch token, as MAE fine-tunes, or 'cls' for
                the class token.
            crop_scale: Range of the share of the image's area that a training view
                covers.
            augmentations: Module from (B, C, H, W) in [0, 1] to normalised views,
                instead of random crops and flips.
            **finetuning: See `FinetuningOptions`: model, weights, delta, adapter, rates
                and so on.

        Raises:
            ValueError: If the number of outputs is missing, *labels* or *class_weights*
                have another length, or the adapter is given twice.
        """
        needed = {'multiclass': 'num_classes', 'multilabel': 'num_labels'}.get(task)
        outputs = {'num_classes': num_classes, 'num_labels': num_labels}
        if needed and not outputs[needed]:
            raise ValueError(f'*{needed}* is needed for *task* {task!r}')
        if needed:
            count = outputs[needed] or 0
            check_lengths(count, labels=labels, class_weights=class_weights)
        super().__init__(FinetuningOptions(**finetuning))
        self.augmentations = augmentations or SingleCrop(
            self.image_size, crop_scale, self.mean, self.std
        )

    def configure_heads(self) -> None:
        """Build the classifier and adapt the backbone."""
        hparams, options = self.hparams, self.options
        self.head = PooledHead(
            self.backbone,
            1 if hparams['task'] == 'binary' else self._classes,
            hparams['pooling'],
            train_norm=options.norms or '' in options.modules,
        )
        self.adapt_backbone()

    @property
    def _classes(self) -> int:
        """Number of classes or labels."""
        if self.hparams['task'] == 'binary':
            return 2
        count: int = self.hparams['num_classes' if self._one_of_many else 'num_labels']
        return count

    @property
    def _one_of_many(self) -> bool:
        return bool(self.hparams['task'] == 'multiclass')

    def configure_losses(self) -> None:
        """Build TorchGeo's loss, with label smoothing."""
        hparams = self.hparams
        hparams['loss'] = hparams['loss'] or ('ce' if self._one_of_many else 'bce')
        if hparams['loss'] == 'ce' and not self._one_of_many:
            raise ValueError(
                f"*loss* 'ce' needs one label per image, not *task*"
                f" {hparams['task']!r}: use 'bce'"
            )
        if hparams['loss'] == 'bce':
            weight = hparams['pos_weight']
            self.criterion = nn.BCEWithLogitsLoss(
                pos_weight=None if weight is None else torch.tensor(weight)
            )
            return
        super().configure_losses()
        if isinstance(self.criterion, nn.CrossEntropyLoss):
            self.criterion.label_smoothing = hparams['label_smoothing']

    def configure_metrics(self) -> None:
        """Build TorchGeo's metrics, the confusion matrix, and the worst examples."""
        super().configure_metrics()
        self.confusion = (
            None
            if self.hparams['task'] == 'multilabel'
            else MulticlassConfusionMatrix(
                self._classes, ignore_index=self.hparams['ignore_index']
            )
        )
        self.worst = Worst()

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the logits of a raw batch, (B, outputs), (B,) for 'binary'."""
        image = self.unit_image(batch)
        view = self.augmentations(image) if self.training else self.view(image)
        logits: Tensor = self.head(self.features(view, batch))
        return logits.squeeze(1) if self.hparams['task'] == 'binary' else logits

    def _step(self, batch: dict[str, Any], split: str) -> Tensor:
        """Return the loss of a batch; log it, and update the metrics."""
        labels = labels_of(batch)
        if self._one_of_many:
            check_labels(
                labels, self.hparams['num_classes'], self.hparams['ignore_index']
            )
        logits = self(batch).float()
        if not self._one_of_many and labels.shape != logits.shape:
            raise ValueError(
                f'the labels have shape {tuple(labels.shape)}, the outputs'
                f' {tuple(logits.shape)}: set *num_labels* to the number of labels, or'
                ' choose another *task*'
            )
        getattr(self, f'{split}_metrics').update(logits, labels)
        if split != 'train':
            self._take(batch, logits, labels)
        targets = labels.float() if self.hparams['loss'] == 'bce' else labels
        loss: Tensor = self.criterion(logits, targets)
        self.log_loss(loss, split, len(labels))
        return loss

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the loss."""
        with self.seeded():
            return self._step(batch, 'train')

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        self._step(batch, 'val')

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        self._step(batch, 'test')

    def _take(self, batch: dict[str, Any], logits: Tensor, labels: Tensor) -> None:
        """Count the classes of a batch, and keep its worst examples."""
        if self.hparams['task'] == 'binary':
            # This leaves the probability of class 1 unchanged.
            logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
        if self.confusion is not None:
            self.confusion.update(logits, labels)
        several = self.confusion is None

        def example(index: int, loss: float) -> Example:
            image = self.unit_image({'image': batch['image'][index, None]})[0]
            of_image = logits[index]
            guess = of_image.sigmoid() if several else of_image.softmax(0)
            return Example(
                loss,
                small_picture(self.backbone, image),
                labels[index].cpu(),
                guess.cpu(),
                *place_of(batch, index),
            )

        ignored = self.hparams['ignore_index']
        self.worst.take(label_losses(logits, labels.long(), ignored), example)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, and write the mistakes."""
        super().on_validation_epoch_end()
        self._write_mistakes('val')

    def on_test_epoch_end(self) -> None:
        """Log the metrics, and write the mistakes."""
        super().on_test_epoch_end()
        self._write_mistakes('test')

    def _write_mistakes(self, split: str) -> None:
        hparams, trainer = self.hparams, self.trainer
        counts = None if self.confusion is None else self.confusion.compute()
        examples = self.worst.drain(trainer.world_size)
        if self.confusion is not None:
            self.confusion.reset()
        if self.leaves_files:
            dataset = self.dataset_of(split)
            names = class_names(dataset, self._classes, hparams['labels'])
            examples = with_paths(examples, dataset)
            write_mistakes(trainer, counts, examples, names, split)

    def predict_batch(self, batch: dict[str, Any]) -> Tensor:
        """Return probabilities, (B, outputs)."""
        logits: Tensor = self(batch).float()
        if self._one_of_many:
            return logits.softmax(-1)
        return logits.sigmoid().view(len(logits), -1)

    def dense(self, image: Tensor) -> Tensor:
        """Return the probabilities of each image, the same at all of its patches.

        For 'binary', one value for class 0 and one for class 1.
        """
        view = self.view.normalize(image.clone())
        logits = self.head(self.backbone(view)).float()
        values = logits.softmax(-1) if self._one_of_many else logits.sigmoid()
        if self.hparams['task'] == 'binary':
            values = torch.cat([1 - values, values], dim=1)
        side = image.shape[-1] // self.cell
        return values[:, :, None, None].expand(-1, -1, side, side)
