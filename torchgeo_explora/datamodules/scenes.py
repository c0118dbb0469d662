"""Data module for windows of scenes."""

import os
from collections.abc import Sequence
from typing import Any

from torchgeo_explora.datamodules.parts import PartsDataModule
from torchgeo_explora.datamodules.splits import expand_paths
from torchgeo_explora.datasets.scenes.tiles import SceneTiles
from torchgeo_explora.datasets.scenes.windows import SceneWindows
from torchgeo_explora.paths import expanded


class ScenesDataModule(PartsDataModule):
    """Unlabelled batches of `SceneWindows`.

    There is nothing to validate or test with. Prediction covers every pixel once, with
    the windows of `SceneTiles`, which takes its arguments from those of the same names
    here; clouds and *max_invalid* have no effect. With *times* above 1, prediction
    covers the drawn series instead. *aug* maps *value_range* to [0, 1].

    Args:
        paths: Folders, patterns, rasters, VRTs or `.json` files of STAC items.
        **dataset: Arguments of the data set.

    Attributes:
        bands: Names of the bands, known after `setup`.
        value_range: (low, high), known after `setup`.
    """

    clip = True
    predicted = 'predict'

    def __init__(
        self,
        # A list comes first: the command line would parse it as text for the others.
        paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = 'data',
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = True,
        prefetch_factor: int | None = None,
        **dataset: Any,
    ) -> None:
        """Keep the arguments; scenes are examined in `setup`."""
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

    def open_split(self, split: str, **dataset: Any) -> SceneWindows | SceneTiles:
        """Return random windows, or for the split 'predict' those side by side.

        Raises:
            NoSamplesError: If no scene has a usable window.
            ValueError: If *res* is given for prediction.
        """
        if split == 'predict' and self.kwargs.get('times', 1) == 1:
            return self._tiles()
        return SceneWindows(self.paths, **dataset)

    def _tiles(self) -> SceneTiles:
        if self.kwargs.get('res') is not None:
            raise ValueError(
                '*res* cannot be used for prediction, which reads the scenes as they'
                ' are: give scenes of this resolution, such as VRTs'
            )
        names = (
            *('size', 'crs', 'bands', 'assets', 'nodata', 'mask'),
            *('value_range', 'on_error', 'transforms'),
        )
        return SceneTiles(
            self.paths, **{n: self.kwargs[n] for n in names if n in self.kwargs}
        )

    def adopt(self, dataset: SceneWindows | SceneTiles) -> None:
        """Take the bands and their range from the scenes."""
        self.adopt_range(dataset)

    def setup(self, stage: str) -> None:
        """Open the index and draw the windows.

        Args:
            stage: 'fit' or 'predict'; nothing happens for others.
        """
        if stage in ('fit', 'predict'):
            super().setup(stage)
