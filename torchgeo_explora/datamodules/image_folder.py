"""A folder of the user's own images, in batches."""

import os
from typing import Any

from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.folder.image_folder import ImageFolder


class ImageFolderDataModule(SplitDataModule):
    """Batches of :class:`~torchgeo_explora.datasets.ImageFolder`.

    *aug* only maps *value_range* to [0, 1], so TorchGeo's own tasks can use this data
    module, and tasks that augment replace it. There is no validation without a folder
    `val` or a `val_fraction`. By default prediction goes over the folder `predict`, or
    over every image.

    A batch has `index`, and `train_dataset.paths[index]` is the path.

    Attributes:
        value_range: (low, high), known after `setup`.
        mean: low, as a tensor.
        std: high - low, as a tensor.
        bands: Names of the bands, known after `setup`.
    """

    bands = ()
    value_range = None
    predicted = 'predict'

    @property
    def has_val(self) -> bool:
        """Whether there are images to validate with."""
        drawn = self.kwargs.get('val_fraction', 0) > 0
        return drawn or os.path.isdir(os.path.join(self.root, 'val'))

    def open_split(self, split: Any, **dataset: Any) -> ImageFolder:
        """Return the data set of a split."""
        return ImageFolder(self.root, split, **dataset)

    def adopt(self, dataset: ImageFolder) -> None:
        """Take bands and range of the first data set, and hold the others to them.

        Raises:
            ValueError: If splits differ in bands or in the range of their values.
        """
        if self.value_range is None:
            self.adopt_range(dataset)
        elif dataset.value_range != self.value_range or dataset.bands != self.bands:
            raise ValueError(
                f'split {dataset.split!r} of {dataset.root} has bands {dataset.bands} '
                f'and range {dataset.value_range}, the split read first {self.bands} '
                f'and {self.value_range}: pass *bands* and *value_range* that fit both'
            )
