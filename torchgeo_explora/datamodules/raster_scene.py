"""Data module for predicting one large raster."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.datamodules import BaseDataModule

from torchgeo_explora.augment import spell_band
from torchgeo_explora.checks import require_positive
from torchgeo_explora.datasets.pixels.raster_blocks import RasterBlocks
from torchgeo_explora.datasets.pixels.scaling import RANGES
from torchgeo_explora.paths import expanded


class RasterSceneDataModule(BaseDataModule):
    """Blocks of one raster file, for `torchgeo predict`.

    The result is a raster of the same area; see `RasterWriter`.

    Args:
        path: A GeoTIFF, or another file that GDAL reads.
        size: Side of a window in pixels: the *image_size* of the model.
        overlap: Pixels that neighbouring windows share; a multiple of the patch.
        block: Side of the blocks that are read and written, in pixels, rounded to whole
            strides. Memory grows with its square.
        bands: Names of the bands to read, in the model's order, if the file has bands
            with these names; otherwise names for the bands that are read.
        value_range: (low, high) of the values; the default follows the stored type.
        num_workers: Worker processes that read blocks.
        channels: Numbers of the bands to read, from 1, in the model's order. If None,
            those that *bands* names, or all but alpha.
        nodata: Value of pixels without data, if the file does not declare it.

    Attributes:
        finished: Returns the numbers of finished blocks; set by the writer.
    """

    def __init__(
        self,
        path: str,
        size: int = 224,
        overlap: int = 32,
        block: int = 1024,
        bands: Sequence[str] | None = None,
        value_range: tuple[Any, Any] | None = None,
        num_workers: int = 0,
        channels: Sequence[int] | None = None,
        nodata: float | None = None,
    ) -> None:
        """Keep the arguments; the header is read in `setup`.

        Raises:
            ValueError: If *overlap* is not below *size*, or *num_workers* below 0.
        """
        require_positive('num_workers', num_workers, or_zero=True)
        if not 0 <= overlap < size:
            raise ValueError(
                f'*overlap* {overlap} must be from 0 to below *size* {size}'
            )
        path = expanded(path)
        super().__init__(
            RasterBlocks, batch_size=1, num_workers=num_workers, path=path, size=size
        )
        self.path = path
        self.size, self.stride = size, size - overlap
        self.block = max(1, round(block / self.stride)) * self.stride
        self.channels, self.nodata = channels, nodata
        self.bands: tuple[str, ...] = tuple(bands or ())
        self.value_range = value_range
        self.range_known = value_range is not None
        self.aug: nn.Module = nn.Identity()
        self.finished: Callable[[], set[int]] = set
        self.mean, self.std = torch.tensor(0.0), torch.tensor(1.0)

    def setup(self, stage: str) -> None:
        """Read the header.

        Args:
            stage: 'predict'; a scene has no other stage.

        Raises:
            ValueError: If it is another stage, or the number of *bands* differs from
                the number of bands read.
        """
        if stage != 'predict':
            raise ValueError(f'a scene is for `torchgeo predict`, not for {stage}')
        self.predict_dataset = self.open()
        if self.channels is None and self.bands:
            self._find_bands(self.predict_dataset)
        self.bands = self.bands or self.predict_dataset.bands
        if self.value_range is None:
            dtype = self.predict_dataset.dtype
            self.value_range = RANGES.get(dtype)
            self.range_known = '16' not in dtype

    def _find_bands(self, dataset: RasterBlocks) -> None:
        """Read the bands that have the given names, if the file has them."""
        have, need = (list(map(spell_band, x)) for x in (dataset.bands, self.bands))
        if all(have.count(name) == 1 for name in need):
            self.channels = [dataset.channels[have.index(name)] for name in need]
            self.predict_dataset = self.open()
        elif len(need) != len(dataset.channels):
            names = ', '.join(dataset.bands) or 'without names'
            raise ValueError(
                f'*bands* are {", ".join(self.bands)}, but {self.path} has'
                f' {len(dataset.channels)} bands, {names}: choose among them by these'
                ' names, or by *channels*'
            )

    def open(self) -> RasterBlocks:
        """Return the blocks that are not finished."""
        return RasterBlocks(
            self.path,
            self.size,
            self.stride,
            self.block,
            skip=self.finished,
            channels=self.channels,
            nodata=self.nodata,
        )

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return one block at a time."""
        self.predict_dataset = self.open()
        return DataLoader(
            self.predict_dataset,
            batch_size=1,
            num_workers=self.num_workers,
            collate_fn=_alone,
        )


def _alone(blocks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return one block as a batch, without a copy: it may be hundreds of MB."""
    (block,) = blocks
    return {name: value[None] for name, value in block.items()}
