"""Views of images, on the device: value ranges, multi-crop and evaluation views."""

from torchgeo_explora.augment.ranges import UnitRange, value_range
from torchgeo_explora.augment.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MultiCrop,
    Preprocess,
    SingleCrop,
    Views,
)

__all__ = [
    'IMAGENET_MEAN',
    'IMAGENET_STD',
    'MultiCrop',
    'Preprocess',
    'SingleCrop',
    'UnitRange',
    'Views',
    'value_range',
]
