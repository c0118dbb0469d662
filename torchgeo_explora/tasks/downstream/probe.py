"""Linear probing: all classifiers of a grid in one pass."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from torchgeo_explora.adapt import base_fingerprint
from torchgeo_explora.augment import SingleCrop
from torchgeo_explora.callbacks.parquet import ProbabilityWriter
from torchgeo_explora.functional import cosine_schedule
from torchgeo_explora.models.backbones.backbone import Features
from torchgeo_explora.models.heads.probe import ProbeHeads
from torchgeo_explora.objectives.objective import batch_metadata
from torchgeo_explora.tasks.downstream.base import DownstreamTask
from torchgeo_explora.tasks.downstream.feature_cache import cache_features
from torchgeo_explora.tasks.downstream.labels import AccuracyOfEach, check_labels
from torchgeo_explora.tasks.downstream.options import DownstreamOptions
from torchgeo_explora.tasks.downstream.report import write_table
from torchgeo_explora.tasks.run.plan import plan

#: Base learning rates: of the authors of ExPLoRA, and of DINOv2.
GRIDS: dict[str, tuple[float, ...]] = {
    'explora': (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    'dinov2': (
        *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
        *(1e-2, 2e-2, 5e-2, 0.1),
    ),
}

#: Splits that a stage reads.
_READ = {'fit': ('train', 'val'), 'validate': ('val',), 'test': ('test',)}


class ExploraLinearProbeTask(DownstreamTask):
    """Train linear classifiers on a frozen backbone, a whole grid at once.

    The recipe is DINOv2's evaluation, as the authors of ExPLoRA use it: the class
    tokens of the last 1 or 4 blocks, with or without the mean patch token, for every
    learning rate; SGD with momentum and a cosine to 0.

    Two protocols are reported by `test`. *paper* is the best classifier on the split
    that is reported: what DINOv2 and the paper print, and optimistic. *held_out* is the
    classifier that was best in validation, on the reported split. In `fit`, `val_paper`
    is the best of all classifiers and evaluations so far, for data sets whose
    validation split is the reported one. `probe.csv` has a row for each classifier.

    Linear probing of a frozen backbone looks at every image of an epoch through it.
    With *cache* it does so once: the features of the whole images are kept on disk, and
    training takes no random crops, which the published figures do.
    """

    monitor = 'val_accuracy'
    mode = 'max'
    labels_cells = True
    writer = ProbabilityWriter

    def __init__(
        self,
        num_classes: int,
        grid: Literal['explora', 'dinov2'] | Sequence[float] = 'explora',
        blocks: Sequence[int] = (1, 4),
        averages: Sequence[bool] = (False, True),
        crop_scale: tuple[float, float] = (0.08, 1.0),
        cache: str | None = None,
        momentum: float = 0.9,
        augmentations: nn.Module | None = None,
        **downstream: Any,
    ) -> None:
        """Build the frozen backbone and its classifiers.

        Args:
            num_classes: Number of classes.
            grid: Learning rates for a batch of 256 (the rate in use is this times
                effective batch / 256): 'explora', 'dinov2', or a list.
            blocks: Numbers of last blocks whose class tokens are read.
            averages: Whether the last block's mean patch token is read.
            crop_scale: Range of a training view's share of the image's area.
            cache: Folder for features; None to compute them in every epoch.
            momentum: SGD's.
            augmentations: Module from (B, C, H, W) in [0, 1] to normalised views,
                instead of random crops and flips.
            **downstream: See `DownstreamOptions`.

        Raises:
            ValueError: If the grid holds a classifier twice, or augmentations are given
                for cached features.
        """
        if cache is not None and augmentations is not None:
            raise ValueError('*cache* keeps whole images: leave out *augmentations*')
        super().__init__(DownstreamOptions(**downstream))
        self.augmentations = augmentations or SingleCrop(
            self.image_size, crop_scale, self.mean, self.std
        )

    def configure_heads(self) -> None:
        """Freeze the backbone and make the classifiers."""
        hparams = self.hparams
        self.adapt_backbone()
        grid = hparams['grid']
        self.heads = ProbeHeads(
            self.backbone.embed_dim,
            hparams['num_classes'],
            GRIDS[grid] if isinstance(grid, str) else tuple(grid),
            tuple(hparams['blocks']),
            tuple(hparams['averages']),
        )

    def configure_metrics(self) -> None:
        """Count for each classifier."""
        count = len(self.heads.settings)
        self.val_accuracy = AccuracyOfEach(count)
        self.test_accuracy = AccuracyOfEach(count)
        #: Accuracy of each classifier in the last validation, in the grid's order.
        self.validated: list[float] | None = None
        self.best = 0.0

    def train(self, mode: bool = True) -> 'ExploraLinearProbeTask':
        """Set the mode of all but the backbone, which stays in evaluation."""
        super().train(mode)
        self.backbone.eval()
        return self

    # Features -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Prepare the images, or the cached features in their place."""
        super().setup(stage)
        if self.hparams['cache'] is not None and stage != 'predict':
            self._read_from_cache(_READ[stage])

    def _read_from_cache(self, splits: Sequence[str]) -> None:
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.backbone.to(self.trainer.strategy.root_device)
        self.raw_images.to(self.trainer.strategy.root_device)
        self.view.to(self.trainer.strategy.root_device)
        # Backbones that read the same weights may read other bands with them.
        kept = ('model', 'model_args', 'image_size', 'crop_fraction', 'value_range')
        identity = str(
            [
                base_fingerprint(self.backbone),
                *(self.hparams[name] for name in kept),
                *(self.mean, self.std, self.heads.depth, self.trainer.precision),
                self.raw_images.unit_range.low.tolist(),
                self.raw_images.unit_range.high.tolist(),
            ]
        )
        for split in splits:
            dataset = getattr(datamodule, f'{split}_dataset', None)
            # A data module that served a run before may hold that run's features.
            dataset = getattr(dataset, 'source', dataset)
            if dataset is None or not hasattr(dataset, '__len__') or not len(dataset):
                continue
            loader: DataLoader[Any] = DataLoader(
                dataset,
                batch_size=datamodule.batch_size,
                num_workers=datamodule.num_workers,
                collate_fn=datamodule.collate_fn,
            )
            # One process computes what all of them read.
            for turn in (True, False):
                if self.trainer.is_global_zero == turn:
                    cached = cache_features(
                        Path(self.hparams['cache']),
                        split,
                        identity,
                        loader,
                        self._cacheable,
                    )
                self.trainer.strategy.barrier('features')
            setattr(datamodule, f'{split}_dataset', cached)

    def _cacheable(self, batch: dict[str, Any]) -> Tensor:
        """Return class tokens and the last mean patch token, (B, depth + 1, D).

        In the trainer's precision, as within a step; the file holds them as float32.
        """
        device = self.trainer.strategy.root_device
        batch = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor)}
        self.backbone.eval()
        # Lightning enters the run's precision for its steps alone.
        with self.trainer.precision_plugin.forward_context():
            features = self.read(self.view(self.unit_image(batch)), batch)
            tokens = [*(f.cls for f in features), features[-1].patch.mean(1)]
        return torch.stack(tokens, dim=1)

    @torch.no_grad()
    def read(self, view: Tensor, batch: Mapping[str, Any]) -> list[Features]:
        """Return the features of the last blocks for normalised views."""
        last = range(-self.heads.depth, 0)
        return self.backbone.features(view, last, **batch_metadata(batch))

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the logits of all classifiers for a raw batch, (heads, B, classes)."""
        if 'features' in batch:
            *tokens, mean = batch['features'].unbind(1)
            features = [Features(cls, mean[:, None]) for cls in tokens]
        else:
            image = self.unit_image(batch)
            view = self.augmentations(image) if self.training else self.view(image)
            features = self.read(view, batch)
        return self.heads(features)

    # Training -----------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Give each classifier its rate; cosine to 0 by optimizer step."""
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
        """Return what is about to run."""
        return (
            f'{super().summary()}\n{len(self.heads.settings)} linear classifiers,'
            f' effective batch {self.effective_batch}'
        )

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the sum of the classifiers' cross-entropies."""
        labels = batch['label']
        check_labels(labels, self.hparams['num_classes'])
        with self.seeded():
            logits = self(batch)
        each = torch.stack([cross_entropy(of_head, labels) for of_head in logits])
        self.log('train_loss', each.mean(), prog_bar=True, batch_size=len(labels))
        return each.sum()

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count what each classifier gets right."""
        self._count(batch, self.val_accuracy)

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count what each classifier gets right."""
        self._count(batch, self.test_accuracy)

    def _count(self, batch: dict[str, Any], metric: AccuracyOfEach) -> None:
        check_labels(batch['label'], self.hparams['num_classes'])
        metric.update(self(batch).argmax(-1), batch['label'])

    def on_validation_epoch_end(self) -> None:
        """Log the best classifier now, and the best there was."""
        accuracy = self.val_accuracy.compute().view(-1).tolist()
        self.val_accuracy.reset()
        if not self.trainer.sanity_checking:
            self.validated = accuracy
            self.best = max(self.best, *accuracy)
            self.log('val_accuracy', max(accuracy), prog_bar=True)
            self.log('val_paper', self.best)
            self._report({'val_accuracy': accuracy})

    def on_test_epoch_end(self) -> None:
        """Log both protocols."""
        accuracy = self.test_accuracy.compute().view(-1).tolist()
        self.test_accuracy.reset()
        self.log('test_paper', max(accuracy))
        columns = {'test_accuracy': accuracy}
        if self.validated is None:
            rank_zero_warn(
                'no held_out figure: no validation chose a classifier; fit with a'
                ' validation set, and test its checkpoint (--ckpt_path)'
            )
        else:
            columns = {'val_accuracy': self.validated, **columns}
            self.log('test_held_out', accuracy[self.chosen])
        self._report(columns)

    @property
    def chosen(self) -> int:
        """Number of the classifier that was best in validation, the first if equal.

        Raises:
            ValueError: If there was no validation.
        """
        if self.validated is None:
            raise ValueError(
                'no validation chose a classifier: fit with a validation set, and give'
                ' its checkpoint (--ckpt_path)'
            )
        return self.validated.index(max(self.validated))

    def _report(self, columns: Mapping[str, Sequence[float]]) -> None:
        rows = [
            setting._asdict() | {name: column[i] for name, column in columns.items()}
            for i, setting in enumerate(self.heads.settings)
        ]
        write_table(self.trainer, 'probe', rows)
        for name, column in columns.items():
            best = self.heads.settings[column.index(max(column))]
            rank_zero_info(f'best {name} {max(column):.4f}: {best}')

    def predict_batch(self, batch: dict[str, Any]) -> Tensor:
        """Return the probabilities of the chosen classifier, (B, classes)."""
        return self(batch)[self.chosen].softmax(-1)

    def dense(self, image: Tensor) -> Tensor:
        """Return the probabilities of each image at all of its patches."""
        features = self.read(self.view.normalize(image.clone()), {})
        values = self.heads(features)[self.chosen].softmax(-1)
        side = image.shape[-1] // self.cell
        return values[:, :, None, None].expand(-1, -1, side, side)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the classifiers and their validation."""
        super().on_save_checkpoint(checkpoint)
        checkpoint['explora'] |= {'validated': self.validated, 'best': self.best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the classifiers and their validation."""
        super().on_load_checkpoint(checkpoint)
        self.validated = checkpoint['explora']['validated']
        self.best = checkpoint['explora']['best']
