"""Data module for NAIP land cover."""

from typing import Any

import torch

from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.naip import BANDS, MEAN, STD, NAIPLandCover

# Mean and standard deviation of values in [0, 1] by band; SatMAE has no statistics for
# near infrared.
_STATISTICS = {
    name: (mean, std)
    for name, mean, std in zip(BANDS, (*MEAN, 0.5), (*STD, 0.25), strict=True)
}


class NAIPLandCoverDataModule(SplitDataModule):
    """Batches of `NAIPLandCover`.

    *aug* normalises with SatMAE's statistics. These do not cover near infrared, which
    is normalised with mean 0.5 and standard deviation 0.25. SatMAE tests on 'val+test'.
    """

    mean = 255 * torch.tensor(MEAN)
    std = 255 * torch.tensor(STD)

    def open_split(self, split: Any, **dataset: Any) -> NAIPLandCover:
        """Return the data set of a split."""
        return NAIPLandCover(self.root, split, **dataset)

    def adopt(self, dataset: NAIPLandCover) -> None:
        """Take the bands from the data set, and their statistics."""
        self.bands = dataset.bands
        statistics = torch.tensor([_STATISTICS[name] for name in self.bands])
        mean, std = 255 * statistics.T
        self.adopt_statistics(mean, std)
