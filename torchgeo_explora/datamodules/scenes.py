"""Windows of scenes, in batches."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from torchgeo_explora.datamodules.normalize import Normalize
from torchgeo_explora.datamodules.splits import SplitDataModule
from torchgeo_explora.datasets.scenes.windows import SceneWindows
from torchgeo_explora.datasets.tables.dataset import OnError


class ScenesDataModule(SplitDataModule):
    """Unlabelled batches of :class:`~torchgeo_explora.datasets.SceneWindows`.

    There is nothing to validate or test with. Prediction goes over the same windows in
    their order. *aug* maps *value_range* to [0, 1].

    Args:
        paths: Folders, patterns, rasters, VRTs or ``.json`` files of STAC items.
        batch_size: Windows in a batch.
        num_workers: Worker processes that read windows.
        size: Side of the windows in pixels.
        length: Number of windows; enough to cover each scene about once if None.
        bands: Bands and their order, names or numbers from 1; all by default.
        assets: Keys of a STAC item's assets, in the order of the bands.
        crs: Coordinate system to warp all scenes to; their own by default.
        res: Size of a pixel in units of the coordinate system; the scene's by default.
        nodata: Value of pixels without data, where the files do not say.
        mask: What stands in place of a scene's suffix in the name of its cloud mask;
            for STAC the key of an asset.
        cloud_values: Values of the mask that hide the ground; all but 0 by default.
        max_invalid: Largest share of a window without data or under clouds.
        times: Images in a series; 1 for single images.
        seed: Of the windows and the series.
        value_range: (low, high) of the values, each one number or a number a band.
        index_dir: Folder of the index file; that of the first path by default.
        max_missing: Largest share of scenes that may be at fault, in [0, 1].
        on_error: 'raise' stops at an unreadable window, 'skip' takes the next one.
        pin_memory: Whether batches go to page-locked memory if there is a CUDA device.
        prefetch_factor: Batches read ahead by each worker; PyTorch's default if None.

    Attributes:
        bands: Names of the bands, known after ``setup``.
        value_range: (low, high), known after ``setup``.
        range_known: False if it is no more than the usual scale of 16 bits.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        size: int = 224,
        length: int | None = None,
        bands: Sequence[int | str] | None = None,
        assets: Sequence[str] = (),
        crs: str | None = None,
        res: float | None = None,
        nodata: float | None = None,
        mask: str | None = None,
        cloud_values: Sequence[int] | None = None,
        max_invalid: float = 0.1,
        times: int = 1,
        seed: int = 0,
        value_range: tuple[float, float]
        | tuple[Sequence[float], Sequence[float]]
        | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        max_missing: float = 0.01,
        on_error: OnError = 'raise',
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
    ) -> None:
        """Keep the arguments; scenes are looked at in ``setup``."""
        super().__init__(
            SceneWindows,
            batch_size,
            num_workers,
            pin_memory,
            prefetch_factor,
            {},
            paths=paths,
            size=size,
            length=length,
            bands=bands,
            assets=assets,
            crs=crs,
            res=res,
            nodata=nodata,
            mask=mask,
            cloud_values=cloud_values,
            max_invalid=max_invalid,
            times=times,
            seed=seed,
            value_range=value_range,
            index_dir=index_dir,
            max_missing=max_missing,
            on_error=on_error,
        )
        self._own_aug = self.aug

    def setup(self, stage: str) -> None:
        """Open the index and draw the windows.

        Args:
            stage: 'fit' or 'predict'; nothing happens for others.

        Raises:
            NoSamplesError: If no scene has a usable window.
        """
        if stage not in ('fit', 'predict'):
            return
        dataset = SceneWindows(**self.kwargs)
        if stage == 'fit':
            self.train_dataset = dataset
        else:
            self.predict_dataset = dataset
        self.bands, self.value_range = dataset.bands, dataset.value_range
        self.range_known = dataset.range_known
        low, high = (torch.tensor(end) for end in dataset.value_range)
        self.mean, self.std = low, high - low
        if self.aug is self._own_aug:
            self.aug = self._own_aug = Normalize(low, high - low, dataset.value_range)

    def val_dataloader(self) -> Any:
        """Return no loader at all."""
        return []
