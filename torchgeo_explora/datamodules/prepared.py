"""Data module for prepared data sets."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.prepared.dataset import Prepared
from torchgeo_explora.datasets.prepared.stream import PreparedStream


class PreparedDataModule(SplitDataModule):
    """Batches of what `prepare` wrote.

    *root* holds a prepared folder for each split, under the name of the split. It may
    also be an address such as `s3://bucket/fmow` for streams. There is no validation if
    a local *root* lacks the folder of *val_split*.

    Args:
        stream: Size of the buffer in which samples are mixed while whole shards are
            streamed, for data that is not on a local disk. With 0, samples are read by
            number, and a run can be resumed exactly. A stream needs
            `trainer.max_steps`.
        seed: Seed of the order of a stream.
        mean: Mean of the sensor values, one number per band; by default *aug* maps the
            data's range to [0, 1].
        std: Standard deviation of the sensor values, one number per band.

    Attributes:
        bands: Names of the bands, known after `setup`.
        value_range: (low, high) of the sensor values, known after `setup`.
    """

    predicted = 'val'
    clip = True

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        stream: int = 0,
        train_split: str = 'train',
        val_split: str | None = 'val',
        test_split: str = 'test',
        predict_split: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        **dataset: Any,
    ) -> None:
        """Keep the arguments; folders are opened in `setup`."""
        if (mean is None) != (std is None):
            raise ValueError('*mean* and *std* must be given together')
        super().__init__(
            root,
            batch_size,
            num_workers,
            train_split,
            val_split,
            test_split,
            predict_split,
            pin_memory,
            prefetch_factor,
        )
        self.statistics = None if mean is None or std is None else (mean, std)
        self.stream, self.seed = stream, seed
        self.kwargs = dataset

    @property
    def has_val(self) -> bool:
        """Whether there is a split to validate with."""
        folder = os.path.join(self.root, self.split_of['val'])
        return super().has_val and ('://' in self.root or os.path.isdir(folder))

    def open_split(self, split: str, **dataset: Any) -> Prepared | PreparedStream:
        """Return the data set of a split.

        Raises:
            NotPreparedError: If its folder is not ready.
        """
        if not self.stream:
            return Prepared(self.root, split, **dataset)
        return PreparedStream(self.root, split, self.stream, self.seed, **dataset)

    def setup(self, stage: str) -> None:
        """Open the splits of a stage; only training samples are mixed.

        Args:
            stage: 'fit', 'validate', 'test' or 'predict'.
        """
        super().setup(stage)
        for dataset in (self.val_dataset, self.test_dataset, self.predict_dataset):
            if isinstance(dataset, PreparedStream):
                dataset.buffer = 0

    def adopt(self, dataset: Prepared | PreparedStream) -> None:
        """Take bands and range from the manifest."""
        attributes = dataset.manifest['attributes']
        self.bands = tuple(attributes.get('bands', self.bands))
        self.range_known = attributes.get('range_known', True)
        low, high = attributes.get('value_range', (0.0, 255.0))
        self.value_range = (
            (tuple(low), tuple(high)) if isinstance(low, list) else (low, high)
        )
        if self.statistics is None:
            low, high = torch.tensor(low), torch.tensor(high)
            self.adopt_statistics(low, high - low)
        else:
            # With given statistics, values beyond the range are kept.
            self.clip = False
            mean, std = (torch.tensor(values) for values in self.statistics)
            self.adopt_statistics(mean, std)
