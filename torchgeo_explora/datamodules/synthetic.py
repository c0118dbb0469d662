"""Data module for procedural scenes."""

from typing import Any, Literal

import torch
from torchgeo.datamodules import NonGeoDataModule

from torchgeo_explora.checks import require_positive
from torchgeo_explora.datasets.pixels import sentinel2
from torchgeo_explora.datasets.pixels.scaling import ValueRange
from torchgeo_explora.datasets.synthetic.scenes import SyntheticScenes


class SyntheticScenesDataModule(NonGeoDataModule):
    """Batches of `SyntheticScenes`.

    The scenes are only normalised: *aug* maps *value_range* to [0, 1].

    Args:
        bands: 'rgb' (8-bit true colour) or 's2' (13 bands, reflectance times 10,000);
            as an attribute, the names of the bands.
        num_train: Scenes to train on.
        num_val: Scenes to validate with.
        num_test: Scenes to test with, and the same number of others to predict.
        batch_size: Scenes in a batch.
        num_workers: Worker processes; the scenes are in memory, so few are enough.
        **dataset: Arguments of the data set.

    Attributes:
        value_range: (low, high) of the values.
        mean: low, as a tensor.
        std: high - low, as a tensor.

    Raises:
        ValueError: If *batch_size* exceeds *num_train*.
    """

    def __init__(
        self,
        bands: Literal['rgb', 's2'] = 'rgb',
        num_train: int = 2000,
        num_val: int = 500,
        num_test: int = 500,
        batch_size: int = 64,
        num_workers: int = 0,
        **dataset: Any,
    ) -> None:
        """Keep the arguments; scenes are drawn in `setup`."""
        require_positive('batch_size', batch_size)
        require_positive('num_workers', num_workers, or_zero=True)
        if batch_size > num_train:
            raise ValueError(
                f'*batch_size* is {batch_size} but *num_train* is {num_train}, and an '
                f'incomplete last batch is dropped: no batch is left. Pass '
                f'batch_size={num_train} or less, or more scenes'
            )
        self.bands = sentinel2.RGB if bands == 'rgb' else sentinel2.BANDS
        self.value_range: ValueRange = (
            (0.0, 255.0) if bands == 'rgb' else sentinel2.reflectance_range(self.bands)
        )
        low, high = (torch.tensor(end) for end in self.value_range)
        self.mean, self.std = low, high - low
        super().__init__(SyntheticScenes, batch_size, num_workers)
        self.kwargs = dataset
        self._form = bands
        self._lengths = {'train': num_train, 'val': num_val}
        self._lengths |= {'test': num_test, 'predict': num_test}

    def _draw(self, split: Any) -> SyntheticScenes:
        length = self._lengths[split]
        return SyntheticScenes(
            split=split, bands=self._form, length=length, **self.kwargs
        )

    def setup(self, stage: str) -> None:
        """Draw the scenes of a stage.

        Args:
            stage: 'fit', 'validate', 'test' or 'predict'.
        """
        if stage == 'fit':
            self.train_dataset = self._draw('train')
        if stage in ('fit', 'validate'):
            self.val_dataset = self._draw('val')
        if stage == 'test':
            self.test_dataset = self._draw('test')
        if stage == 'predict':
            self.predict_dataset = self._draw('predict')
