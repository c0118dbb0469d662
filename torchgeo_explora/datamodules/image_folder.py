"""A folder of the user's own images, in batches."""

import os
from collections.abc import Sequence
from typing import Literal

import torch

from torchgeo_explora.datamodules.normalize import Normalize
from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.folder.image_folder import ImageFolder


class ImageFolderDataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.ImageFolder`.

    Nothing but normalisation happens to the images: *aug* maps *value_range* to
    [0, 1], so TorchGeo's own tasks can use this data module, and tasks that augment
    replace ``train_aug`` and ``aug``. Without validation images there is no validation.

    ``path`` is part of the batch in prediction only; ``index`` is always there, and
    ``train_dataset.paths[index]`` is the path.

    Args:
        root: The folder, whose layout is described at the data set.
        batch_size: Images in a batch.
        num_workers: Worker processes that read images.
        size: Side in pixels of the square images; None if all have one size already.
        bands: Bands to read and their order, numbers from 1 or names; all by default.
        value_range: (low, high) of the sensor values, each one number or a number a
            band. By default follows the stored type: uint8 (0, 255); uint16 and int16
            (0, 10000); float (0, 1).
        val_fraction: Share of the training images to validate with, in [0, 1).
        test_fraction: Share of the training images to test with, in [0, 1).
        seed: Seed of the fractions.
        on_error: What to do at an unreadable image: 'raise', or 'skip' with a warning.
        predict_split: Images to predict, in the order of their paths: 'predict' is the
            folder of that name, or every image.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.
        band_names: Names of the bands in every file, in their order, where the files
            do not tell: GeoTIFFs without band descriptions.

    Attributes:
        value_range: (low, high), known after ``setup`` unless given.
        range_known: False if it is no more than the usual scale of 16 bits.
        mean: low, as a tensor.
        std: high - low, as a tensor.
        bands: Names of the bands, known after ``setup``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        size: int | None = None,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float]
        | tuple[Sequence[float], Sequence[float]]
        | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
        on_error: Literal['raise', 'skip'] = 'raise',
        predict_split: Literal['train', 'val', 'test', 'predict'] = 'predict',
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        band_names: Sequence[str] | None = None,
    ) -> None:
        """Keep the arguments; files are listed in ``setup``."""
        super().__init__(
            ImageFolder,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {'train': 'train', 'val': 'val', 'test': 'test', 'predict': predict_split},
            root=root,
            size=size,
            bands=bands,
            value_range=value_range,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            on_error=on_error,
            band_names=band_names,
        )
        self.has_val = val_fraction > 0 or os.path.isdir(os.path.join(root, 'val'))
        self.value_range = None
        self.range_known = True
        self.bands = ()
        self._own_aug = self.aug

    def open_split(self, stage: str) -> ImageFolder:
        """Return the data set of a stage: 'train', 'val', 'test' or 'predict'.

        Raises:
            NoImagesError: If the split has no image.
            UnreadableImageError: If the first image cannot be read.
            ValueError: If splits differ in bands or in the range of their values.
        """
        dataset: ImageFolder = super().open_split(stage)
        if self.value_range is None:
            self._adopt(dataset)
        elif dataset.value_range != self.value_range or dataset.bands != self.bands:
            raise ValueError(
                f'split {dataset.split!r} of {dataset.root} has bands {dataset.bands} '
                f'and range {dataset.value_range}, the split read first {self.bands} '
                f'and {self.value_range}: pass *bands* and *value_range* that fit both'
            )
        return dataset

    def _adopt(self, dataset: ImageFolder) -> None:
        """Take bands and normalisation from the first data set."""
        self.value_range = dataset.value_range
        self.range_known = dataset.range_known
        self.bands = dataset.bands
        low, high = (torch.tensor(end) for end in dataset.value_range)
        self.mean, self.std = low, high - low
        if self.aug is self._own_aug:
            self.aug = Normalize(self.mean, self.std)
