"""Data modules for the user's own images: a folder, or the files that a CSV lists."""

from typing import Any

from torchgeo_explora.datamodules.parts import PartsDataModule
from torchgeo_explora.datasets.folder.image_folder import ImageFolder
from torchgeo_explora.datasets.folder.layout import has_split_folder
from torchgeo_explora.datasets.tables.csv_dataset import CSVDataset


class _OwnImagesDataModule(PartsDataModule):
    """Images whose bands and value range are known only from the files.

    Attributes:
        value_range: (low, high), known after `setup`.
        mean: low, as a tensor.
        std: high - low, as a tensor.
        bands: Names of the bands, known after `setup`.
    """

    bands = ()
    value_range = None

    def adopt(self, dataset: ImageFolder | CSVDataset) -> None:
        """Take bands and range from the first data set; the others must have the same.

        Raises:
            ValueError: If splits differ in bands or in the range of their values.
        """
        if self.value_range is None:
            self.adopt_range(dataset)
        elif dataset.value_range != self.value_range or dataset.bands != self.bands:
            raise ValueError(
                f'split {dataset.split!r} of {dataset.root} has bands {dataset.bands} '
                f'and range {dataset.value_range}, but the split read first has '
                f'{self.bands} and {self.value_range}: pass *bands* and *value_range* '
                f'that fit both'
            )


class ImageFolderDataModule(_OwnImagesDataModule):
    """Batches of `ImageFolder`.

    *aug* only maps *value_range* to [0, 1], so TorchGeo's own tasks can use this data
    module, and tasks that augment replace it. There is no validation without a folder
    `val` or a `val_fraction`. By default, prediction covers the folder `predict` if
    there is one, otherwise every image.

    A batch has `index`, and `train_dataset.paths[index]` is the path.
    """

    predicted = 'predict'

    @property
    def has_val(self) -> bool:
        """Whether there are images to validate with."""
        drawn = self.kwargs.get('val_fraction', 0) > 0
        return drawn or has_split_folder(self.root, 'val')

    def open_split(self, split: Any, **dataset: Any) -> ImageFolder:
        """Return the data set of a split."""
        return ImageFolder(self.root, split, **dataset)


class CSVDataModule(_OwnImagesDataModule):
    """Batches of `CSVDataset`.

    *aug* only maps *value_range* to [0, 1]. A batch has `domain` if the CSV file has a
    column of domains, so that results can be reported by domain. If two splits share a
    place, a warning says so, unless the name of the second split starts with `id_`,
    which marks images from the training places.
    """

    def open_split(self, split: str, **dataset: Any) -> CSVDataset:
        """Return the data set of a split."""
        return CSVDataset(self.root, split, **dataset)
