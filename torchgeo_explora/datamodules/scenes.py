"""Windows of scenes, in batches."""

import os
from collections.abc import Sequence
from typing import Any

from torchgeo_explora.datamodules.splits import SplitDataModule, expand_paths
from torchgeo_explora.datasets.scenes.windows import SceneWindows
from torchgeo_explora.paths import expanded


class ScenesDataModule(SplitDataModule):
    """Unlabelled batches of `SceneWindows`.

    There is nothing to validate or test with. Prediction goes over the same windows in
    their order. *aug* maps *value_range* to [0, 1].

    Args:
        paths: Folders, patterns, rasters, VRTs or `.json` files of STAC items.
        **dataset: Arguments of the data set.

    Attributes:
        bands: Names of the bands, known after `setup`.
        value_range: (low, high), known after `setup`.
    """

    clip = True

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        **dataset: Any,
    ) -> None:
        """Keep the arguments; scenes are looked at in `setup`."""
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            val_split=None,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
        )
        given = [paths] if isinstance(paths, str | os.PathLike) else paths
        self.paths = [expanded(path) for path in given]
        self.kwargs = dataset
        expand_paths(self.kwargs)

    def open_split(self, split: str, **dataset: Any) -> SceneWindows:
        """Return the windows, whatever the split.

        Raises:
            NoSamplesError: If no scene has a usable window.
        """
        return SceneWindows(self.paths, **dataset)

    def adopt(self, dataset: SceneWindows) -> None:
        """Take the bands of the scenes, and their range."""
        self.adopt_range(dataset)

    def setup(self, stage: str) -> None:
        """Open the index and draw the windows.

        Args:
            stage: 'fit' or 'predict'; nothing happens for others.
        """
        if stage in ('fit', 'predict'):
            super().setup(stage)
