"""The base class of data modules for data sets with splits."""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datamodules.utils import collate_fn_detection
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.augment import IMAGENET_MEAN, IMAGENET_STD
from torchgeo_explora.checks import require_positive
from torchgeo_explora.datasets.pixels.scaling import ValueRange
from torchgeo_explora.datasets.tables.dataset import TableDataset
from torchgeo_explora.datasets.tables.problems import warn_of_shared_places
from torchgeo_explora.paths import expanded

# Data sets that each stage of the trainer opens.
_OPENED = {
    'fit': ('train', 'val'),
    'validate': ('val',),
    'test': ('test',),
    'predict': ('predict',),
}
_RGB = ('red', 'green', 'blue')


class _NormalizeBatch(nn.Module):
    """Map `image` of a batch to (image - mean) / std, and keep the other keys.

    Unlike Kornia's containers, it accepts series (B, T, C, H, W).

    Args:
        mean: One number per channel, or one for all.
        std: One number per channel, or one for all.
        limits: (low, high) that the raw values are clipped to first.
    """

    def __init__(
        self,
        mean: Tensor | Sequence[float],
        std: Tensor | Sequence[float],
        limits: tuple[Sequence[float] | float, Sequence[float] | float] | None = None,
    ) -> None:
        """Keep the statistics."""
        super().__init__()
        self.mean, self.std = _column(mean), _column(std)
        self.limits = None if limits is None else [_column(end) for end in limits]

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with `image` normalised, (..., C, H, W)."""
        image = batch['image'].float()
        if self.limits is not None:
            low, high = (end.to(image.device) for end in self.limits)
            image = torch.maximum(torch.minimum(image, high), low)
        mean, std = self.mean.to(image.device), self.std.to(image.device)
        return {**batch, 'image': (image - mean) / std}


def _column(values: Tensor | Sequence[float] | float) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def expand_paths(dataset: dict[str, Any]) -> None:
    """Replace `~` and environment variables in a data set's arguments, in place."""
    for name in ('csv', 'index_dir'):
        if dataset.get(name) is not None:
            dataset[name] = expanded(dataset[name])


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch; boxes and their labels become lists, one tensor per image.

    Workers get only this function, not the data module, whose tensors and trainer do
    not belong in another process.

    Args:
        samples: Samples of one data set.
    """
    apart = {'bbox_xyxy'} & samples[0].keys()
    if apart and samples[0].get('label') is not None:
        apart |= {'label'} if samples[0]['label'].ndim else set()
    batch: dict[str, Any] = default_collate(
        [{k: v for k, v in sample.items() if k not in apart} for sample in samples]
    )
    # Boxes of images that have one label do not stack, and no task uses them.
    if 'label' in apart:
        boxes: dict[str, Any] = dict(collate_fn_detection(samples))
        batch |= {key: boxes[key] for key in apart}
    return batch


class SplitDataModule(NonGeoDataModule):
    """Batches of a data set with splits.

    A subclass opens a split in `open_split`, whose arguments are those of the data set.
    The command line finds them there.

    Images are only normalised; tasks that augment replace *aug*. `path` is part of the
    batch only in prediction, because TorchGeo's tasks plot validation samples with a
    function that takes only tensors. Boxes and their labels are lists with one tensor
    per image; boxes of images that have one label are left out.

    Args:
        root: Folder of the data set.
        batch_size: Samples in a batch.
        num_workers: Worker processes that read samples.
        train_split: Split to train on.
        val_split: Split to validate with; None for no validation.
        test_split: Split to test with.
        predict_split: Split to predict, in the order of its samples. If None, 'val' for
            fMoW and prepared data, 'predict' for an image folder, 'test' for others.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches that each worker reads ahead; PyTorch's default if
            None.
        **dataset: Arguments of `open_split`.

    Attributes:
        bands: Names of the bands.
        value_range: (low, high) of the sensor values.
        range_known: False if *value_range* is only the usual scale of 16-bit values.
        mean: Mean of the sensor values that *aug* subtracts.
        std: Standard deviation that it divides by.
    """

    bands: Sequence[str] = _RGB
    value_range: ValueRange | None = (0.0, 255.0)
    range_known = True
    mean = torch.tensor([255 * mean for mean in IMAGENET_MEAN])
    std = torch.tensor([255 * std for std in IMAGENET_STD])
    #: Whether *aug* clips values to *value_range*.
    clip = False
    #: Split to predict by default.
    predicted = 'test'

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        train_split: str = 'train',
        val_split: str | None = 'val',
        test_split: str = 'test',
        predict_split: str | None = None,
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        **dataset: Any,
    ) -> None:
        """Keep the arguments; files are listed in `setup`.

        Raises:
            ValueError: If *batch_size* is not positive or *num_workers* is negative.
        """
        require_positive('batch_size', batch_size)
        require_positive('num_workers', num_workers, or_zero=True)
        super().__init__(NonGeoDataset, batch_size, num_workers)  # type: ignore[type-abstract]
        self.root = expanded(root)
        self.pin_memory = pin_memory
        self.prefetch_factor = prefetch_factor
        self.split_of = {
            'train': train_split,
            'val': val_split or '',
            'test': test_split,
            'predict': predict_split or self.predicted,
        }
        # Kept as given: the command line traces them to the call that takes them.
        self.kwargs = dataset
        expand_paths(self.kwargs)
        self.collate_fn = collate
        self.aug = self._own_aug = self._normalize()

    def _normalize(self) -> _NormalizeBatch:
        limits = self.value_range if self.clip else None
        return _NormalizeBatch(self.mean, self.std, limits)

    @property
    def has_val(self) -> bool:
        """Whether there is a split to validate with."""
        return bool(self.split_of['val'])

    def open_split(self, split: str, **dataset: Any) -> Any:
        """Return the data set of a split.

        Args:
            split: Its name.
            **dataset: Arguments of the data set.

        Raises:
            NoSamplesError: If the split has no sample.
        """
        raise NotImplementedError

    def adopt(self, dataset: Any) -> None:
        """Take what only an open data set knows, such as *bands*.

        It is called before the next data set is opened.

        Args:
            dataset: The data set of any stage.
        """

    def adopt_range(self, dataset: Any) -> None:
        """Take bands and range from a data set, and map the range to [0, 1].

        Args:
            dataset: Has `bands` and `value_range`.
        """
        self.bands, self.value_range = dataset.bands, dataset.value_range
        self.range_known = getattr(dataset, 'range_known', True)
        low, high = (torch.tensor(end) for end in dataset.value_range)
        self.adopt_statistics(low, high - low)

    def adopt_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalise with these statistics, unless a task has replaced *aug*."""
        self.mean, self.std = mean, std
        if self.aug is self._own_aug:
            self.aug = self._own_aug = self._normalize()

    def _open(self, stage: str) -> Any:
        # The command line reads this call to find the arguments of the data set.
        dataset = self.open_split(self.split_of[stage], **self.kwargs)
        self.adopt(dataset)
        return dataset

    def prepare_data(self) -> None:
        """Download what the trainer's stage needs, in one process."""
        if self.kwargs.get('download', False):
            stage = self.trainer.state.fn if self.trainer else None
            for part in _OPENED[stage] if stage else self.split_of:
                self._open(part)

    def setup(self, stage: str) -> None:
        """Open the splits of a stage.

        Args:
            stage: 'fit', 'validate', 'test' or 'predict'.

        Raises:
            NoSamplesError: If a split has no sample.
        """
        for part in _OPENED[stage]:
            if part != 'val' or self.has_val:
                setattr(self, f'{part}_dataset', self._open(part))
        if stage == 'fit' and self.has_val:
            self.warn_of_leaks(self.train_dataset, self.val_dataset)
        if stage == 'test' and hasattr(type(self.test_dataset), 'places'):
            self.warn_of_leaks(self._training_split(), self.test_dataset)

    def teardown(self, stage: str) -> None:
        """Warn of the samples that were left out, once for each split.

        Args:
            stage: 'fit', 'validate', 'test' or 'predict'.
        """
        for part in _OPENED[stage]:
            dataset = getattr(self, f'{part}_dataset', None)
            if isinstance(dataset, TableDataset) and (text := dataset.sum_up()):
                rank_zero_warn(text)

    def _training_split(self) -> Any:
        """Return the training split, None if it is not on this machine."""
        if self.train_dataset is not None:
            return self.train_dataset
        # It is downloaded only for training.
        here = {key: value for key, value in self.kwargs.items() if key != 'download'}
        try:
            return self.open_split(self.split_of['train'], **here)
        except FileNotFoundError:
            return None

    def warn_of_leaks(self, train: Any, other: Any) -> None:
        """Warn if another split shares places with training, unless it is meant to.

        Args:
            train: The training split; without `places`, nothing is known to be shared.
            other: The validation or test split.
        """
        # In-distribution splits share places with training by design.
        if not hasattr(type(train), 'places') or other.split.startswith('id_'):
            return
        warn_of_shared_places(
            {split.split: split.places for split in (train, other)},
            type(train).__name__,
        )

    def _dataloader_factory(self, split: str) -> DataLoader[dict[str, Any]]:
        dataset = self._valid_attribute(f'{split}_dataset', 'dataset')
        batch_size = self._valid_attribute(f'{split}_batch_size', 'batch_size')
        training = split == 'train'
        # A stream has no length, and an order of its own.
        numbered = not isinstance(dataset, IterableDataset)
        if training and numbered:
            ranks = self.trainer.world_size if self.trainer else 1
            share = math.ceil(len(dataset) / ranks)
            if share < batch_size:
                raise ValueError(
                    f'*batch_size* is {batch_size} but there are only {share} training'
                    f' samples for each process, and an incomplete last batch is'
                    f' dropped: no batch is left. Pass batch_size={share} or less'
                )
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=training and numbered,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            drop_last=training,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
        )

    def val_dataloader(self) -> Any:
        """Return the validation batches; no loader if there is no such split."""
        return super().val_dataloader() if self.has_val else []

    def on_after_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Normalise, and keep `path` for prediction only."""
        if self.trainer and not self.trainer.predicting:
            batch.pop('path', None)
        return super().on_after_batch_transfer(batch, dataloader_idx)
