"""From the batches of any data module to images in [0, 1]."""

import warnings
from typing import Any

from torch import Tensor, nn

from torchgeo_explora.models.backbone import Backbone
from torchgeo_explora.tasks.intake import select_bands, unit_range


class RawImages(nn.Module):
    """Pick a backbone's bands out of raw images and map them to [0, 1].

    Args:
        backbone: Tells its channels, and its bands where they have names.
        datamodule: Tells bands and range of the values; after its `setup`.
        value_range: (low, high) of the user, scalars or one per channel.

    Raises:
        ValueError: If nothing tells the range, or a band is missing.
    """

    def __init__(
        self,
        backbone: Backbone,
        datamodule: Any,
        value_range: tuple[Any, Any] | None = None,
    ) -> None:
        """Find bands and range."""
        super().__init__()
        bands = getattr(backbone, 'bands', None)
        self.select = (
            nn.Identity() if bands is None else select_bands(datamodule, bands)
        )
        self.channels = backbone.in_channels
        self.unit_range = unit_range(value_range, datamodule, bands)
        self._checked = False

    @property
    def value_range(self) -> list[list[float]]:
        """[low, high] of the sensor values, one for all channels or one for each."""
        ends = self.unit_range.low, self.unit_range.high
        return [end.flatten().tolist() for end in ends]

    def compare(self, trained: list[list[float]] | None) -> None:
        """Warn if values were mapped to [0, 1] from another range in training."""
        if trained not in (None, self.value_range):
            warnings.warn(
                f'the task was trained on values in {trained}, and these images'
                f' are taken to have {self.value_range}: give the same *value_range*'
                ' if the images are alike',
                stacklevel=2,
            )

    def sensor(self, image: Tensor) -> Tensor:
        """Return the backbone's channels of raw images, in sensor values, float32.

        Args:
            image: Raw values, (B, C', H, W) or (B, T, C', H, W).

        Raises:
            ValueError: If the images do not have the backbone's channels.
        """
        image = self.select(image)
        if image.ndim not in (4, 5) or image.shape[-3] != self.channels:
            raise ValueError(
                f'the data module gives images {tuple(image.shape)}, expected'
                f' (B, {self.channels}, H, W): choose its bands, or set *in_channels*'
            )
        return image.float()

    def unit(self, image: Tensor) -> Tensor:
        """Return what `sensor` gave in [0, 1].

        Raises:
            ValueError: If most of the first batch's values lie outside the range.
        """
        if not self._checked:
            self.unit_range.check(image)
            self._checked = True
        unit: Tensor = self.unit_range(image)
        return unit

    def forward(self, image: Tensor) -> Tensor:
        """Return raw images in [0, 1]: (B, C, H, W), or series of them."""
        return self.unit(self.sensor(image))
