"""Linear probing: train all classifiers of a grid in one run."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from torchgeo_explora.adapt import fingerprint
from torchgeo_explora.augment import SingleCrop
from torchgeo_explora.callbacks.writers.parquet import ProbabilityWriter
from torchgeo_explora.functional import cosine_schedule
from torchgeo_explora.models.backbones.tokens import Features, Pooling
from torchgeo_explora.models.heads.probe import ProbeHeads
from torchgeo_explora.objectives.objective import batch_metadata
from torchgeo_explora.paths import expanded
from torchgeo_explora.tasks.downstream.accuracies import (
    AccuracyOfEach,
    ConfusionOfEach,
    MultilabelScoresOfEach,
    Selection,
    write_table,
)
from torchgeo_explora.tasks.downstream.base import DownstreamTask
from torchgeo_explora.tasks.downstream.batches import (
    check_labels,
    check_multi_hot,
    labels_of,
)
from torchgeo_explora.tasks.downstream.feature_cache import use_cached_features
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
from torchgeo_explora.tasks.downstream.options import DownstreamOptions
from torchgeo_explora.tasks.run.plan import plan

#: Base learning rates, as in the code of ExPLoRA and of DINOv2.
GRIDS: dict[str, tuple[float, ...]] = {
    'explora': (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    'dinov2': (
        *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
        *(1e-2, 2e-2, 5e-2, 0.1),
    ),
}

type Scores = AccuracyOfEach | MultilabelScoresOfEach

#: Splits that a stage reads.
_READ = {'fit': ('train', 'val'), 'validate': ('val',), 'test': ('test',)}


class ExploraLinearProbeTask(DownstreamTask):
    """Train linear classifiers on a frozen backbone, a whole grid at once.

    The recipe is DINOv2's evaluation, as the authors of ExPLoRA use it: the class
    tokens of the last 1 or 4 blocks, with or without the mean patch token, for every
    learning rate; SGD with momentum and a cosine schedule to 0. If the weights come
    from MAE, mean patch tokens are read instead of class tokens; see *pooling*.

    `test` reports two protocols. *paper* is the best classifier on the reported split,
    as DINOv2 and the paper report it, and optimistic. *held_out* is the classifier that
    was best in validation, evaluated on the reported split. In `fit`, `val_paper` is
    the best of all classifiers and validations so far, for data sets whose validation
    split is the reported one. `probe.csv` has a row for each classifier. For the one
    that counts, `confusion_val.csv` or `confusion_test.csv` and its `.png` hold the
    confusion matrix if each image has one class, and `worst_val.csv` or
    `worst_test.csv` and its `.png` show the images with the highest cross-entropy.

    With several labels per image (*task* 'multilabel') the loss is binary
    cross-entropy, and the score is `val_mAP`, the mean average precision over the
    labels; F1 is in the table.

    Without *cache*, every image passes through the frozen backbone in every epoch. With
    it, an image does so only once: the features of whole images are kept on disk.
    Training then has no random crops, unlike for the published figures.
    """

    monitor = 'val_accuracy'
    mode = 'max'
    labels_cells = True
    writer = ProbabilityWriter
    pooling: Pooling

    def __init__(
        self,
        num_classes: int,
        grid: Literal['explora', 'dinov2'] | Sequence[float] = 'explora',
        blocks: Sequence[int] = (1, 4),
        averages: Sequence[bool] | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        cache: str | None = None,
        momentum: float = 0.9,
        augmentations: nn.Module | None = None,
        pooling: Pooling | None = None,
        task: Literal['multiclass', 'multilabel'] = 'multiclass',
        **downstream: Any,
    ) -> None:
        """Build the frozen backbone and its classifiers.

        Args:
            num_classes: Number of classes, or of labels for 'multilabel'.
            grid: Learning rates for a batch of 256 (the rate in use is this times
                effective batch / 256): 'explora', 'dinov2', or a list.
            blocks: Numbers of last blocks whose tokens are read.
            averages: Whether the last block's mean patch token is also read; if None,
                [false, true] for *pooling* 'cls', and [false] for the others, which
                include it anyway.
            crop_scale: Range of the share of the image's area that a training view
                covers.
            cache: Folder for features; None to compute them in every epoch.
            momentum: Momentum of SGD.
            augmentations: Module from (B, C, H, W) in [0, 1] to normalised views,
                instead of random crops and flips.
            pooling: What is read from each block: 'cls' for the class token, 'mean' for
                the mean patch token, 'both' for the two concatenated; if None, the
                pooling that the delta was evaluated with, else the backbone's own.
            task: 'multiclass' for one class per image, 'multilabel' for several labels
                per image, 0 or 1 for each.
            **downstream: See `DownstreamOptions`.

        Raises:
            ValueError: If the grid holds a classifier twice, the mean patch token would
                be read twice, or augmentations are given for cached features.
        """
        if cache is not None and augmentations is not None:
            raise ValueError(
                '*cache* keeps features of whole images: leave out *augmentations*'
            )
        super().__init__(DownstreamOptions(**downstream))
        self.augmentations = augmentations or SingleCrop(
            self.image_size, crop_scale, self.mean, self.std
        )

    def configure_heads(self) -> None:
        """Freeze the backbone and build the classifiers."""
        hparams = self.hparams
        self.adapt_backbone()
        grid = hparams['grid']
        averages = hparams['averages']
        # Version 0.1 read class tokens only, with and without the mean beside them.
        beside: Any = 'cls' if averages and any(averages) else None
        self.pooling = hparams['pooling'] or beside or self.backbone.pooling
        if averages is None:
            averages = (False, True) if self.pooling == 'cls' else (False,)
        if self.pooling != 'cls' and any(averages):
            raise ValueError(
                f'*pooling* {self.pooling!r} reads the mean patch token anyway: leave'
                ' out *averages*'
            )
        self.heads = ProbeHeads(
            self.backbone.embed_dim * (2 if self.pooling == 'both' else 1),
            hparams['num_classes'],
            GRIDS[grid] if isinstance(grid, str) else tuple(grid),
            tuple(hparams['blocks']),
            tuple(averages),
        )

    def configure_metrics(self) -> None:
        """Count predictions of each classifier, and keep its worst examples."""
        heads, classes = len(self.heads.settings), self.hparams['num_classes']
        self.confusion = None if self._several else ConfusionOfEach(classes)
        self.worst = [Worst() for _ in range(heads)]
        self.val_scores, self.test_scores = (
            MultilabelScoresOfEach() if self._several else AccuracyOfEach(heads)
            for _ in range(2)
        )
        score = self.val_scores.names[0]
        self.selection = Selection(score)
        self.monitor = f'val_{score}'

    def train(self, mode: bool = True) -> 'ExploraLinearProbeTask':
        """Set the mode of all but the backbone, which stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    # Features -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Prepare the images, or cached features instead."""
        super().setup(stage)
        if self.hparams['cache'] is None or stage == 'predict':
            return
        device = self.trainer.strategy.root_device
        for module in (self.backbone, self.raw_images, self.view):
            module.to(device)
        # Backbones with the same weights may still read different bands.
        kept = ('model', 'model_args', 'crop_fraction')
        identity = str(
            [
                # The weights themselves, with the delta, whatever file they come from.
                fingerprint(self.backbone.state_dict()),
                # Without an *image_size*, a delta may decide it.
                *(self.image_size, *(self.hparams[name] for name in kept)),
                *(self.mean, self.std, self.heads.depth, self.trainer.precision),
                (self.pooling, any(each.average for each in self.heads.settings)),
                self.raw_images.unit_range.low.tolist(),
                self.raw_images.unit_range.high.tolist(),
            ]
        )
        folder = Path(expanded(self.hparams['cache']))
        use_cached_features(
            self.trainer, _READ[stage], folder, identity, self._cacheable
        )

    def _cacheable(self, batch: dict[str, Any]) -> Tensor:
        """Return what the classifiers read from each image, (B, depth or depth + 1, D).

        These are the tokens of the last blocks, and the last mean patch token if one of
        the classifiers reads it. They have the trainer's precision, as in a step; the
        file holds them as float32.
        """
        device = self.trainer.strategy.root_device
        batch = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor)}
        self.backbone.eval()
        # Lightning applies the run's precision only in its own steps.
        with self.trainer.precision_plugin.forward_context():
            features = self.read(self.view(self.unit_image(batch)), batch)
            tokens = [feature.cls for feature in features]
            if any(setting.average for setting in self.heads.settings):
                tokens.append(features[-1].patch.mean(1))
        return torch.stack(tokens, dim=1)

    @torch.no_grad()
    def read(self, view: Tensor, batch: Mapping[str, Any]) -> list[Features]:
        """Return the features of the last blocks for normalised views.

        The pooled tokens take the place of the class token.
        """
        last = range(-self.heads.depth, 0)
        found = self.backbone.features(view, last, **batch_metadata(batch))
        return [Features(each.pooled(self.pooling), each.patch) for each in found]

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the logits of all classifiers for a raw batch, (heads, B, classes)."""
        if 'features' in batch:
            tokens = batch['features'].unbind(1)
            # Of the patches, only the mean of the last block is read, if anything.
            patch = tokens[-1][:, None]
            features = [Features(cls, patch) for cls in tokens[: self.heads.depth]]
        else:
            image = self.unit_image(batch)
            view = self.augmentations(image) if self.training else self.view(image)
            features = self.read(view, batch)
        return self.heads(features)

    # Training -----------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Give each classifier its learning rate; cosine to 0 by optimizer step."""
        steps, self.effective_batch = plan(self.trainer)
        optimizer = SGD(
            self.heads.parameter_groups(self.effective_batch),
            momentum=self.hparams['momentum'],
        )
        schedule = LambdaLR(optimizer, lambda i: cosine_schedule(i, steps, 1.0, 0.0))
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': schedule, 'interval': 'step'},
        }

    def summary(self) -> str:
        """Describe the run that is about to start."""
        return (
            f'{super().summary()}\n{len(self.heads.settings)} linear classifiers,'
            f' effective batch {self.effective_batch}'
        )

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the sum of the classifiers' cross-entropies."""
        labels = self._labels(batch)
        with self.seeded():
            logits = self(batch)
        entropy: Callable[[Tensor, Tensor], Tensor] = cross_entropy
        if self._several:
            entropy, labels = binary_cross_entropy_with_logits, labels.float()
        each = torch.stack([entropy(of_head, labels) for of_head in logits])
        self.log('train_loss', each.mean(), prog_bar=True, batch_size=len(labels))
        return each.sum()

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the predictions of each classifier."""
        self._count(batch, 'val')

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the predictions of each classifier."""
        self._count(batch, 'test')

    @property
    def _several(self) -> bool:
        """Whether an image may have several labels."""
        return bool(self.hparams['task'] == 'multilabel')

    def _labels(self, batch: dict[str, Any]) -> Tensor:
        labels = labels_of(batch)
        check = check_multi_hot if self._several else check_labels
        check(labels, self.hparams['num_classes'])
        return labels

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self._several else logits.softmax(-1)

    def _count(self, batch: dict[str, Any], split: str) -> None:
        labels = self._labels(batch)
        logits = self(batch)
        metric: Scores = getattr(self, f'{split}_scores')
        metric.update(logits.sigmoid() if self._several else logits, labels)
        if self.confusion is not None:
            self.confusion.update(logits, labels)
        # Which classifier counts is known only at the end. If the batch has no images,
        # the pictures are read then.
        images = batch.get('image')
        unread = torch.empty(0)
        picture = cache(
            lambda index: unread if images is None else self._picture(images[index])
        )
        for worst, of_head in zip(self.worst, logits, strict=True):

            def example(index: int, loss: float, of_head: Tensor = of_head) -> Example:
                return Example(
                    loss,
                    picture(index),
                    labels[index].cpu(),
                    self._probabilities(of_head[index].float()).cpu(),
                    *place_of(batch, index),
                )

            worst.take(label_losses(of_head, labels), example)

    def _source(self, split: str) -> Any:
        """Return the data set of the images that cached features come from."""
        dataset = self.dataset_of(split)
        return getattr(dataset, 'source', dataset)

    def _picture(self, image: Tensor) -> Tensor:
        """Return a raw image as a small picture."""
        image = self.unit_image({'image': image[None].to(self.device)})[0]
        return small_picture(self.backbone, image)

    def _shown(self, examples: list[Example], split: str) -> list[Example]:
        """Return examples with their paths and pictures."""
        source = self._source(split)
        return [
            each
            if each.image.numel()
            else each._replace(image=self._picture(source[each.number]['image']))
            for each in with_paths(examples, source)
        ]

    def on_validation_epoch_end(self) -> None:
        """Log the score of the best classifier now and so far."""
        columns = self._columns('val', self.val_scores)
        scores = columns[self.monitor]
        if not self.trainer.sanity_checking:
            metrics = self.selection.validate(scores)
            self.log(self.monitor, metrics.pop(self.monitor), prog_bar=True)
            self.log_dict(metrics)
            self._report(columns)
        self._write_mistakes('val', scores.index(max(scores)))

    def on_test_epoch_end(self) -> None:
        """Log both protocols."""
        columns = self._columns('test', self.test_scores)
        scores = next(iter(columns.values()))
        self.log_dict(self.selection.test(scores))
        chosen = scores.index(max(scores))
        if self.selection.validated is not None:
            chosen = self.selection.chosen
            columns = {self.monitor: self.selection.validated, **columns}
        self._report(columns)
        self._write_mistakes('test', chosen)

    @staticmethod
    def _columns(split: str, metric: Scores) -> dict[str, list[float]]:
        """Return the scores of all classifiers by name, and reset the metric."""
        # A single number has no dimensions.
        scores = metric.compute().view(len(metric.names), -1).tolist()
        metric.reset()
        names = [f'{split}_{name}' for name in metric.names]
        return dict(zip(names, scores, strict=True))

    def _report(self, columns: Mapping[str, Sequence[float]]) -> None:
        rows = [
            setting._asdict() | {name: column[i] for name, column in columns.items()}
            for i, setting in enumerate(self.heads.settings)
        ]
        write_table(self.trainer, 'probe', rows)
        for name, column in columns.items():
            best = self.heads.settings[column.index(max(column))]
            rank_zero_info(f'best {name} {max(column):.4f}: {best}')

    def _write_mistakes(self, split: str, chosen: int) -> None:
        """Write what a classifier got wrong, and discard the others' mistakes."""
        trainer = self.trainer
        examples = self.worst[chosen].drain(trainer.world_size)
        for worst in self.worst:
            worst.drain()
        counts = None if self.confusion is None else self.confusion.matrix(chosen)
        if self.confusion is not None:
            self.confusion.reset()
        if self.leaves_files:
            count = self.hparams['num_classes']
            names = class_names(self._source(split), count, None)
            if trainer.is_global_zero:
                examples = self._shown(examples, split)
            write_mistakes(trainer, counts, examples, names, split)

    def predict_batch(self, batch: dict[str, Any]) -> Tensor:
        """Return the probabilities of the chosen classifier, (B, classes)."""
        return self._probabilities(self(batch)[self.selection.chosen])

    def dense(self, image: Tensor) -> Tensor:
        """Return the probabilities of each image, the same at all of its patches."""
        features = self.read(self.view.normalize(image.clone()), {})
        values = self._probabilities(self.heads(features)[self.selection.chosen])
        side = image.shape[-1] // self.cell
        return values[:, :, None, None].expand(-1, -1, side, side)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the classifiers and their validation scores."""
        super().on_save_checkpoint(checkpoint)
        checkpoint['explora'] |= self.selection.state() | {'pooling': self.pooling}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the classifiers and their validation scores.

        Raises:
            ValueError: If the checkpoint belongs to another base or architecture, or
                its classifiers read other tokens.
        """
        super().on_load_checkpoint(checkpoint)
        # Earlier versions read the class token only.
        trained = checkpoint['explora'].get('pooling', 'cls')
        if trained != self.pooling:
            raise ValueError(
                f'the classifiers of the checkpoint were trained with *pooling*'
                f' {trained!r}, but the task has {self.pooling!r}: give {trained!r}'
            )
        self.selection.load_state(checkpoint['explora'])
