"""Images on the device: bands, value ranges, multi-crop and evaluation views."""

from torchgeo_explora.augment.bands import (
    Quantize,
    SelectBands,
    band_indices,
    rgb_order,
    spell_band,
)
from torchgeo_explora.augment.ranges import UnitRange, value_range
from torchgeo_explora.augment.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AnchoredViews,
    CentreCrop,
    MultiCrop,
    MultiCropOptions,
    Preprocess,
    SingleCrop,
    Views,
)

__all__ = [
    'IMAGENET_MEAN',
    'IMAGENET_STD',
    'AnchoredViews',
    'CentreCrop',
    'MultiCrop',
    'MultiCropOptions',
    'Preprocess',
    'Quantize',
    'SelectBands',
    'SingleCrop',
    'UnitRange',
    'Views',
    'band_indices',
    'rgb_order',
    'spell_band',
    'value_range',
]
