"""Nearest neighbours, to evaluate a frozen backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Subset

from torchgeo_explora.functional import knn_vote
from torchgeo_explora.models.backbones.tokens import POOLINGS, Pooling
from torchgeo_explora.objectives.objective import batch_metadata
from torchgeo_explora.tasks.downstream.accuracies import (
    AccuracyOfEach,
    MultilabelScoresOfEach,
    write_table,
)
from torchgeo_explora.tasks.downstream.base import DownstreamTask
from torchgeo_explora.tasks.downstream.batches import check_multi_hot, labels_of
from torchgeo_explora.tasks.downstream.options import DownstreamOptions


class ExploraKNNTask(DownstreamTask):
    """Weighted nearest neighbours in a frozen backbone's features; run `torchgeo test`.

    DINOv2's evaluation (`eval/knn.py`): class tokens after the final norm (mean patch
    tokens if the weights come from MAE), cosine similarity, and a softmax with
    temperature over the neighbours. The bank is the data module's training set; the
    queries are its test set (`test`) or its validation set (`validate`). Several
    processes fill the bank together. `predict` gives embeddings.

    With several labels per image, 0 or 1 for each, the neighbours vote on every label,
    and mean average precision over the labels and F1 replace the accuracy.

    Nothing is trained, so there is no `fit`.
    """

    pooling: Pooling

    def __init__(
        self,
        k: Sequence[int] = (5, 10, 20, 100, 200),
        temperature: float = 0.07,
        pooling: Pooling | None = None,
        **downstream: Any,
    ) -> None:
        """Build the frozen backbone.

        Args:
            k: Numbers of neighbours that vote; numbers larger than the bank are reduced
                to its size.
            temperature: Temperature of the softmax over cosine similarities.
            pooling: How tokens become an embedding: 'cls' for the class token, 'mean'
                for the mean patch token, 'both' for the two concatenated; if None, the
                pooling that the delta was evaluated with, else the backbone's own.
            **downstream: See `DownstreamOptions`. DINOv2's evaluation has a
                *crop_fraction* of 0.875.

        Raises:
            ValueError: If a number of neighbours is below 1, or none is given; or the
                pooling is not known.
        """
        if not k or min(k) < 1:
            raise ValueError(f'*k* is {list(k)}: give numbers of 1 or more')
        if pooling not in (None, *POOLINGS):
            raise ValueError(f'*pooling* is {pooling!r}: choose from {POOLINGS}')
        super().__init__(DownstreamOptions(**downstream))

    def configure_heads(self) -> None:
        """Freeze the backbone, and choose the pooling."""
        self.adapt_backbone()
        self.pooling = self.hparams['pooling'] or self.backbone.pooling

    def configure_callbacks(self) -> list[Callback]:
        """Return callbacks that write embeddings; refuse to fit, and say what to do.

        Raises:
            ValueError: If the trainer is to fit.
        """
        if self.trainer.state.fn == 'fit':
            raise ValueError(
                'ExploraKNNTask trains nothing: call `torchgeo test` or `validate`'
            )
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Prepare the images, including those of the bank.

        Raises:
            ValueError: If there is no training set for the bank.
        """
        if stage in ('validate', 'test'):
            datamodule: Any = getattr(self.trainer, 'datamodule', None)
            if datamodule is not None:
                datamodule.setup('fit')
            if getattr(datamodule, 'train_dataset', None) is None:
                raise ValueError(
                    f'{type(datamodule).__name__} has no train_dataset, which is the'
                    ' bank of neighbours: give a data module with labelled splits'
                )
        super().setup(stage)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return L2-normalised embeddings of a raw batch, (B, D), float32.

        In steps and for the bank, matrix products use the trainer's precision.
        """
        return normalize(self.predict_batch(dict(batch)), dim=-1)

    # The bank -----------------------------------------------------------------------

    @torch.no_grad()
    def _fill_bank(self) -> None:
        """Embed the training set; each process does its share."""
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        dataset = datamodule.train_dataset
        size, world = len(dataset), self.trainer.world_size
        # All shares have the same size: the first images are repeated to fill them up.
        share = range(self.global_rank, -(-size // world) * world, world)
        loader: DataLoader[Any] = DataLoader(
            Subset(dataset, [i % size for i in share]),
            batch_size=datamodule.batch_size,
            num_workers=datamodule.num_workers,
            collate_fn=datamodule.collate_fn,
        )
        features, labels = [], []
        for batch in loader:
            tensors = {
                name: value.to(self.device)
                for name, value in batch.items()
                if isinstance(value, Tensor)
            }
            # Lightning applies the run's precision only in its own steps.
            with self.trainer.precision_plugin.forward_context():
                features.append(self(tensors))
            labels.append(labels_of(tensors))
        self.bank = self._gathered(torch.cat(features))[:size]
        self.bank_labels = self._gathered(torch.cat(labels))[:size]
        wanted = self.hparams['k']
        self.k = sorted({min(k, size) for k in wanted})
        if max(wanted) > size:
            rank_zero_warn(
                f'the bank has {size} images: *k* {[k for k in wanted if k > size]} are'
                f' reduced to {size}'
            )
        if self._several:
            self.classes = self.bank_labels.shape[1]
            check_multi_hot(self.bank_labels, self.classes)
            seen = int(self.bank_labels.any(0).sum())
        else:
            self.classes = int(self.bank_labels.max()) + 1
            seen = len(self.bank_labels.unique())
        missing = self.classes - seen
        rank_zero_info(
            f'kNN bank: {size} images of {self.classes - missing} classes'
            + (f'; {missing} classes have no images' if missing else '')
        )

    @property
    def _several(self) -> bool:
        """Whether an image may have several labels."""
        return self.bank_labels.ndim == 2

    def _gathered(self, values: Tensor) -> Tensor:
        """Return the values of all processes in the order of the data set."""
        if self.trainer.world_size == 1:
            return values
        gathered = self.all_gather(values)  # -> (world, share, ...)
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).flatten(0, 1)

    def on_test_epoch_start(self) -> None:
        """Fill the bank."""
        self._fill_bank()
        several, heads = self._several, len(self.k)
        scores = MultilabelScoresOfEach() if several else AccuracyOfEach(heads)
        self.scores = scores.to(self.device)

    def on_validation_epoch_start(self) -> None:
        """Fill the bank."""
        self.on_test_epoch_start()

    # Queries ------------------------------------------------------------------------

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let the neighbours of each image vote."""
        labels, queries = labels_of(batch), self(batch)
        if self._several:
            check_multi_hot(labels, self.classes)
        votes = [
            knn_vote(
                self.bank,
                self.bank_labels,
                queries,
                k,
                self.classes,
                self.hparams['temperature'],
            )
            for k in self.k
        ]
        self.scores.update(torch.stack(votes), labels)

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let the neighbours of each image vote."""
        self.test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the scores of each number of neighbours."""
        self._report('test')

    def on_validation_epoch_end(self) -> None:
        """Log the scores of each number of neighbours."""
        self._report('val')

    def _report(self, split: str) -> None:
        names = self.scores.names
        # A single number has no dimensions; (scores, k) -> a row for each k
        table = self.scores.compute().view(len(names), -1).T.tolist()
        for k, values in zip(self.k, table, strict=True):
            ends = [f'_{name}' for name in names] if self._several else ['']
            keys = [f'{split}_knn_{k}{end}' for end in ends]
            self.log_dict(dict(zip(keys, values, strict=True)))
        columns = ['k', *(f'{split}_{name}' for name in names)]
        rows = [
            dict(zip(columns, (k, *values), strict=True))
            for k, values in zip(self.k, table, strict=True)
        ]
        write_table(self.trainer, f'knn_{split}', rows)

    def predict_batch(self, batch: dict[str, Any]) -> Tensor:
        """Return embeddings after the final norm, (B, D)."""
        view = self.view(self.unit_image(batch))
        content, position, _ = self.backbone.embed(view, **batch_metadata(batch))
        # The last block need not compute patch tokens that nothing reads.
        none = torch.zeros(content.shape[:2], dtype=torch.bool)
        wanted = none if self.pooling == 'cls' else None
        features = self.backbone.encode(content, position, wanted)
        return features.pooled(self.pooling).float()
