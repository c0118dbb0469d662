"""The middle of an image, as classifiers are usually evaluated."""

from collections.abc import Sequence

from torch import Tensor

from torchgeo_explora.augment.views import IMAGENET_MEAN, IMAGENET_STD, Preprocess


class CentreCrop(Preprocess):
    """The middle of each image: resized, cropped and normalised.

    With a fraction of 0.875 it is the usual evaluation at 224 pixels: resized to 256,
    the middle 224 cropped. Of an image that is not square the aspect is not kept.

    Args:
        image_size: Side of the view in pixels.
        fraction: Share of each side that is seen, in (0, 1]; 1 is the whole image.
        mean: Mean of the normalisation, of values in [0, 1].
        std: Standard deviation, likewise.

    Raises:
        ValueError: If the fraction is out of range.
    """

    def __init__(
        self,
        image_size: int,
        fraction: float = 1.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """Choose the size before the crop."""
        if not 0 < fraction <= 1:
            raise ValueError(f'*fraction* is {fraction}: choose above 0 and up to 1')
        super().__init__(int(image_size / fraction), mean, std)
        self.crop_size = image_size

    def forward(self, image: Tensor) -> Tensor:
        """Return the view, (..., C, S, S), float32, normalised.

        Args:
            image: (B, C, H, W) or (B, T, C, H, W), floating, in [0, 1].
        """
        view = super().forward(image)
        first = [round((side - self.crop_size) / 2) for side in view.shape[-2:]]
        top, left = first
        size = self.crop_size
        return view[..., top : top + size, left : left + size]
