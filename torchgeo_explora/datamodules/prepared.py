"""Prepared data sets, in batches."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torchgeo.datamodules.utils import collate_fn_detection

from torchgeo_explora.datamodules.normalize import Normalize
from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.prepared.dataset import Prepared
from torchgeo_explora.datasets.prepared.stream import PreparedStream
from torchgeo_explora.datasets.tables.dataset import OnError


class PreparedDataModule(SplitDataModule):
    """Batches of what :func:`~torchgeo_explora.datasets.prepare` wrote.

    *root* holds a prepared folder for each split, by the name of the split.

    Args:
        root: The folder above, or for streams also an address such as
            ``s3://bucket/fmow``.
        batch_size: Samples in a batch.
        num_workers: Worker processes that read samples.
        stream: Samples mixed in a buffer of this size while whole shards are streamed,
            for data that is not on a local disk; 0 reads by number, which a run can
            resume exactly. A stream needs ``trainer.max_steps``.
        train_split: Folder to train on.
        val_split: Folder to validate with; there is no validation if it is None, or if
            a local *root* has no such folder.
        test_split: Folder to test with.
        predict_split: Folder to predict.
        mean: Mean of the sensor values, a number a band; by default *aug* maps the
            data's range to [0, 1].
        std: Standard deviation, likewise.
        seed: Of the order of a stream.
        on_error: 'raise' stops at a damaged sample, 'skip' goes on without it.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.

    Attributes:
        bands: Names of the bands, known after ``setup``.
        value_range: (low, high) of the sensor values, known after ``setup``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        stream: int = 0,
        train_split: str = 'train',
        val_split: str | None = 'val',
        test_split: str = 'test',
        predict_split: str = 'val',
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        on_error: OnError = 'raise',
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
    ) -> None:
        """Keep the arguments; folders are opened in ``setup``."""
        if (mean is None) != (std is None):
            raise ValueError('*mean* and *std* must be given together')
        super().__init__(
            Prepared,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {
                'train': train_split,
                'val': val_split or '',
                'test': test_split,
                'predict': predict_split,
            },
            root=root,
            on_error=on_error,
        )
        self.statistics = None if mean is None or std is None else (mean, std)
        self.stream, self.seed = stream, seed
        self.has_val = val_split is not None and (
            '://' in os.fspath(root) or os.path.isdir(os.path.join(root, val_split))
        )
        self._own_aug = self.aug

    def open_split(self, stage: str) -> Any:
        """Return the data set of a stage: 'train', 'val', 'test' or 'predict'.

        Raises:
            NotPreparedError: If its folder is not ready.
        """
        if self.stream:
            buffer = self.stream if stage == 'train' else 0
            root, on_error = os.fspath(self.kwargs['root']), self.kwargs['on_error']
            split = self.split_of[stage]
            dataset: Any = PreparedStream(root, split, buffer, self.seed, on_error)
        else:
            dataset = super().open_split(stage)
        self._adopt(dataset)
        return dataset

    def _adopt(self, dataset: Any) -> None:
        """Take bands and range from a data set."""
        attributes = dataset.manifest['attributes']
        self.bands = tuple(attributes.get('bands', self.bands))
        self.range_known = attributes.get('range_known', True)
        low, high = attributes.get('value_range', (0.0, 255.0))
        self.value_range = (
            (tuple(low), tuple(high)) if isinstance(low, list) else (low, high)
        )
        ends = torch.tensor(low), torch.tensor(high)
        self.mean, self.std = ends[0], ends[1] - ends[0]
        limits: Any = self.value_range
        if self.statistics is not None:
            self.mean, self.std = (torch.tensor(values) for values in self.statistics)
            limits = None
        if self.aug is self._own_aug:
            self.aug = self._own_aug = Normalize(self.mean, self.std, limits)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch; boxes, and labels of boxes, stay apart by image."""
        apart = {'bbox_xyxy'}
        if 'bbox_xyxy' in samples[0] and samples[0].get('label') is not None:
            apart |= {'label'} if samples[0]['label'].ndim else set()
        batch = super().collate(
            [{k: v for k, v in sample.items() if k not in apart} for sample in samples]
        )
        if 'label' in apart:
            boxes: dict[str, Any] = dict(collate_fn_detection(samples))
            batch |= {key: boxes[key] for key in apart}
        return batch

    def _dataloader_factory(self, split: str) -> DataLoader[dict[str, Any]]:
        dataset = getattr(self, f'{split}_dataset')
        if not isinstance(dataset, IterableDataset):
            return super()._dataloader_factory(split)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            drop_last=split == 'train',
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
        )
