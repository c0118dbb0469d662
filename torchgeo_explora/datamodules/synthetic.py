"""Procedural scenes, in batches."""

from typing import Literal

import torch
from torchgeo.datamodules import NonGeoDataModule

from torchgeo_explora.datasets.pixels import sentinel2
from torchgeo_explora.datasets.pixels.value_range import ValueRange
from torchgeo_explora.datasets.synthetic.scenes import SyntheticScenes


class SyntheticScenesDataModule(NonGeoDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.SyntheticScenes`.

    Nothing but normalisation happens to the scenes: *aug* maps *value_range* to [0, 1].

    Args:
        domain: 'source' or 'target', which differ in sensor and region.
        bands: 'rgb' (8-bit true colour) or 's2' (13 bands, reflectance times 10,000).
        size: Side of the scenes in pixels of 10 m.
        num_train: Scenes to train on.
        num_val: Scenes to validate with.
        num_test: Scenes to test with, and as many others to predict.
        seed: Seed of the scenes.
        batch_size: Scenes in a batch.
        num_workers: Worker processes; the scenes are in memory, so few help.

    Attributes:
        value_range: (low, high) of the values.
        mean: low, as a tensor.
        std: high - low, as a tensor.
        bands: Names of the bands.

    Raises:
        ValueError: If *batch_size* exceeds *num_train*.
    """

    def __init__(
        self,
        domain: Literal['source', 'target'] = 'source',
        bands: Literal['rgb', 's2'] = 'rgb',
        size: int = 64,
        num_train: int = 2000,
        num_val: int = 500,
        num_test: int = 500,
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        """Keep the arguments; scenes are drawn in ``setup``."""
        if batch_size > num_train:
            raise ValueError(
                f'*batch_size* is {batch_size} but *num_train* is {num_train}, and a '
                f'last part batch is dropped: no batch is left. Pass '
                f'batch_size={num_train} or less, or more scenes'
            )
        self.bands = sentinel2.RGB if bands == 'rgb' else sentinel2.BANDS
        self.value_range: ValueRange = (
            (0.0, 255.0) if bands == 'rgb' else sentinel2.reflectance_range(self.bands)
        )
        low, high = (torch.tensor(end) for end in self.value_range)
        self.mean, self.std = low, high - low
        super().__init__(
            SyntheticScenes,
            batch_size,
            num_workers,
            domain=domain,
            bands=bands,
            size=size,
            seed=seed,
        )
        self.num_train, self.num_val, self.num_test = num_train, num_val, num_test

    def setup(self, stage: str) -> None:
        """Draw the scenes of a stage.

        Args:
            stage: 'fit', 'validate', 'test' or 'predict'.
        """
        draw = SyntheticScenes
        if stage == 'fit':
            self.train_dataset = draw(
                split='train', length=self.num_train, **self.kwargs
            )
        if stage in ('fit', 'validate'):
            self.val_dataset = draw(split='val', length=self.num_val, **self.kwargs)
        if stage == 'test':
            self.test_dataset = draw(split='test', length=self.num_test, **self.kwargs)
        if stage == 'predict':
            self.predict_dataset = draw(
                split='predict', length=self.num_test, **self.kwargs
            )
