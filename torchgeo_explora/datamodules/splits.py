"""What the data modules of data sets with splits share."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.datamodules.normalize import Normalize
from torchgeo_explora.datasets.pixels.value_range import ValueRange
from torchgeo_explora.datasets.tables.problems import warn_of_shared_places

#: Data sets that a stage of the trainer opens.
OPENED = {
    'fit': ('train', 'val'),
    'validate': ('val',),
    'test': ('test',),
    'predict': ('predict',),
}
#: ImageNet's mean and standard deviation of 8-bit values.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
RGB = ('red', 'green', 'blue')


class SplitDataModule(NonGeoDataModule):
    """Batches of a data set whose class takes *split*.

    Nothing but normalisation happens to the images, and tasks that augment replace it.

    ``path`` is part of the batch in prediction only: TorchGeo's tasks plot validation
    samples with a function that takes tensors alone.

    Args:
        dataset_class: The data set.
        batch_size: Images in a batch.
        num_workers: Worker processes that read images.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
        split_of: Name of the split by stage: 'train', 'val', 'test' and 'predict'.
        **kwargs: Arguments of the data set.

    Attributes:
        bands: Names of the bands.
        value_range: (low, high) of the sensor values.
        mean: Mean of the sensor values that *aug* subtracts.
        std: Standard deviation that it divides by.
    """

    bands: Sequence[str] = RGB
    value_range: ValueRange | None = (0.0, 255.0)
    mean = torch.tensor(IMAGENET_MEAN)
    std = torch.tensor(IMAGENET_STD)
    #: Whether there is a split to validate on.
    has_val = True
    #: Keys that no batch has, since their samples differ in shape.
    dropped: tuple[str, ...] = ()
    #: CSV file in the data's folder that lists a split, None for the usual place.
    csv: Mapping[str, str | None] = {}

    def __init__(
        self,
        dataset_class: type[NonGeoDataset],
        batch_size: int,
        num_workers: int,
        pin_memory: bool,
        prefetch_factor: int | None,
        split_of: dict[str, str],
        **kwargs: Any,
    ) -> None:
        """Keep the arguments; files are listed in ``setup``."""
        super().__init__(dataset_class, batch_size, num_workers, **kwargs)
        self.pin_memory = pin_memory
        self.prefetch_factor = prefetch_factor
        self.split_of = split_of
        self.collate_fn = self.collate
        self.aug = Normalize(self.mean, self.std)

    def _arguments(self, part: str) -> dict[str, Any]:
        split = self.split_of[part]
        arguments = {'split': split, **self.kwargs}
        csv = self.csv.get(split)
        if csv is not None:
            arguments['csv'] = os.path.join(self.kwargs['root'], csv)
        return arguments

    def open_split(self, stage: str) -> Any:
        """Return the data set of a stage: 'train', 'val', 'test' or 'predict'."""
        return self.dataset_class(**self._arguments(stage))

    def prepare_data(self) -> None:
        """Download what the trainer's stage needs, in one process."""
        if self.kwargs.get('download', False):
            stage = self.trainer.state.fn if self.trainer else None
            for part in OPENED[stage] if stage else self.split_of:
                self.open_split(part)

    def setup(self, stage: str) -> None:
        """Open the splits of a stage.

        Args:
            stage: 'fit', 'validate', 'test' or 'predict'.

        Raises:
            NoSamplesError: If a split has no sample.
        """
        for part in OPENED[stage]:
            if part != 'val' or self.has_val:
                setattr(self, f'{part}_dataset', self.open_split(part))
        if not hasattr(self.dataset_class, 'places'):
            return
        if stage == 'fit' and self.has_val:
            self.warn_of_leaks(self.train_dataset, self.val_dataset)
        if stage == 'test':
            self.warn_of_leaks(self._training_split(), self.test_dataset)

    def _training_split(self) -> Any:
        """Return the training split, None if it is not on this machine."""
        if self.train_dataset is not None:
            return self.train_dataset
        arguments = self._arguments('train')
        # Fetched for training only.
        arguments.pop('download', None)
        try:
            return self.dataset_class(**arguments)
        except FileNotFoundError:
            return None

    def warn_of_leaks(self, train: Any, other: Any) -> None:
        """Warn if another split has places of training, unless that is its purpose.

        Args:
            train: The training split; nothing is known to be shared if it has no
                ``places``.
            other: What validates or tests.
        """
        # In-distribution splits share places with training by design.
        if not hasattr(type(train), 'places') or other.split.startswith('id_'):
            return
        warn_of_shared_places(
            {split.split: split.places for split in (train, other)},
            type(train).__name__,
        )

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch without the keys that cannot be stacked."""
        return default_collate(
            [{k: v for k, v in s.items() if k not in self.dropped} for s in samples]
        )

    def _dataloader_factory(self, split: str) -> DataLoader[dict[str, Any]]:
        dataset = self._valid_attribute(f'{split}_dataset', 'dataset')
        batch_size = self._valid_attribute(f'{split}_batch_size', 'batch_size')
        training = split == 'train'
        if training:
            ranks = self.trainer.world_size if self.trainer else 1
            share = math.ceil(len(dataset) / ranks)
            if share < batch_size:
                raise ValueError(
                    f'*batch_size* is {batch_size} but there are only {share} training'
                    f' samples for each process, and a last part batch is dropped: no'
                    f' batch is left. Pass batch_size={share} or less'
                )
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=training,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            drop_last=training,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
        )

    def val_dataloader(self) -> Any:
        """Return the validation batches, or no loader at all without such images."""
        return super().val_dataloader() if self.has_val else []

    def on_after_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Normalise, and keep ``path`` for prediction only."""
        if self.trainer and not self.trainer.predicting:
            batch.pop('path', None)
        return super().on_after_batch_transfer(batch, dataloader_idx)
