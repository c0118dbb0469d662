"""From the batches of any data module to images in [0, 1]."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchgeo.datasets import IntersectionDataset

from torchgeo_explora.augment import (
    SelectBands,
    UnitRange,
    band_indices,
    rgb_order,
    spell_band,
    value_range,
)
from torchgeo_explora.datasets.pixels import sentinel2
from torchgeo_explora.functional.spacing import middle_values
from torchgeo_explora.models import RotaryViT, ViT
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.formats.enums import Ends

# Between two units, spans differ by more than this factor.
_OTHER_UNITS = 5
# A range that nobody stated should not be wider than its values by more than this
# factor.
_TOO_WIDE = 3
# Number of values that are examined for this.
_SOME = 100_000


class RawImages(nn.Module):
    """Pick a backbone's bands out of raw images and map them to [0, 1].

    Args:
        backbone: Gives its number of channels and, if its weights state them, its bands
            and the range of their values.
        datamodule: Gives the bands and the range of the values; after its `setup`.
        value_range: (low, high) given by the user, scalars or one per channel.

    Attributes:
        bands: Names of the channels, in the backbone's order; None if not known.
        advises: Whether to warn if the first values fill only a small part of a range
            that nobody stated. Later stages should keep the range used in training.

    Raises:
        ValueError: If the range is not known, or a band is missing.
    """

    advises = False

    def __init__(
        self,
        backbone: Backbone,
        datamodule: Any,
        value_range: tuple[Any, Any] | None = None,
    ) -> None:
        """Find the bands and the range."""
        super().__init__()
        wanted = wanted_bands(backbone, datamodule)
        select = None if wanted is None else select_bands(datamodule, wanted)
        self.select = select or nn.Identity()
        self.bands = wanted or backbone.bands or band_names(datamodule)
        self.channels = backbone.in_channels
        # Colours that only change places keep their ranges, which change places too.
        named = wanted if backbone.bands else None
        self.unit_range = unit_range(
            value_range, datamodule, named, backbone.value_range
        )
        if select and not named and value_range is None:
            self.unit_range = self.unit_range.of(select.indices)
        self._checked = False
        unstated = (
            value_range is None and named is None and backbone.value_range is None
        )
        # The usual scale of 16 bits, which images seldom fill.
        self._guessed = unstated and not getattr(datamodule, 'range_known', True)

    @property
    def value_range(self) -> list[list[float]]:
        """[low, high] of the sensor values, one for all channels or one for each."""
        ends = self.unit_range.low, self.unit_range.high
        return [end.flatten().tolist() for end in ends]

    def compare(self, trained: list[list[float]] | None) -> None:
        """Warn if values were mapped to [0, 1] from another range in training."""
        if trained not in (None, self.value_range):
            warnings.warn(
                f'the task was trained on values in {trained}, but these images are'
                f' taken to have values in {self.value_range}: give the same'
                ' *value_range* if the images are alike',
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
        """Map what `sensor` returned to [0, 1].

        Raises:
            ValueError: If most of the first batch's values lie outside the range.
        """
        if not self._checked:
            # A batch without any data says nothing about the next one.
            self._checked = self.unit_range.check(image)
            if self.advises and self._guessed and self._checked:
                self._warn_if_dull(image)
        unit: Tensor = self.unit_range(image)
        return unit

    def _warn_if_dull(self, image: Tensor) -> None:
        """Warn if values fill little of a range that nobody stated."""
        low, high = middle_values(image, 0.01, _SOME)
        span = float((self.unit_range.high - self.unit_range.low).max())
        # One value, or none, gives no range: there has been no data so far.
        if 0 < _TOO_WIDE * (high - low) < span:
            lows, highs = self.value_range
            # Rounded outwards, in steps much smaller than the span.
            step = 10 ** (math.floor(math.log10(high - low)) - 1)
            round_low = step * math.floor(low / step)
            round_high = step * math.ceil(high / step)
            warnings.warn(
                f'98 % of the first values are from {low:.4g} to {high:.4g}, but'
                f' {lows[0]:g} to {highs[0]:g} is only the usual range of 16 bits: set'
                f' *value_range*, such as [{round_low:g}, {round_high:g}], for more'
                ' contrast',
                stacklevel=2,
            )

    def forward(self, image: Tensor) -> Tensor:
        """Map raw images to [0, 1], (B, C, H, W) or series of them."""
        return self.unit(self.sensor(image))


_DATASETS = (
    *('train_dataset', 'val_dataset', 'test_dataset', 'predict_dataset', 'dataset'),
)


def take_over_normalization(datamodule: Any) -> None:
    """Make a data module hand out raw sensor values, in place.

    Photometric augmentation works on values in [0, 1], before normalisation. TorchGeo's
    data modules normalise first, on the device: that step becomes the identity.
    """
    for name in ('train_aug', 'val_aug', 'test_aug', 'predict_aug', 'aug'):
        if hasattr(datamodule, name):
            setattr(datamodule, name, nn.Identity())


def band_names(datamodule: Any) -> tuple[str, ...] | None:
    """Return the names of the channels of a data module's images, in their order.

    They are the `bands` of the data module or of its data sets; TorchGeo's Sentinel-2,
    EuroSAT and SSL4EO-S12 have them, and so do our image folders. Call it after the
    data module's `setup`. None if there are none.
    """
    if names := _names(datamodule):
        return names
    found = (_names_of(getattr(datamodule, name, None)) for name in _DATASETS)
    return next(filter(None, found), None)


def _names(holder: Any) -> tuple[str, ...]:
    names = getattr(holder, 'bands', None)
    if isinstance(names, Sequence) and not isinstance(names, str):
        return tuple(name for name in names if isinstance(name, str))
    return ()


def _names_of(dataset: Any) -> tuple[str, ...]:
    """Return the names of the channels of a data set's images, () if it has none."""
    if dataset is None or not getattr(dataset, 'is_image', True):
        return ()
    if names := _names(dataset):
        return names
    # A subset; the intersection of two, whose images are stacked; else one of many.
    parts = [_names_of(part) for part in getattr(dataset, 'datasets', ())]
    if isinstance(dataset, IntersectionDataset):
        return tuple(name for part in parts for name in part)
    return next(filter(None, parts), _names_of(getattr(dataset, 'dataset', None)))


def wanted_bands(backbone: Backbone, datamodule: Any) -> tuple[str, ...] | None:
    """Return the data module's names of the bands that a backbone takes, in its order.

    A ViT of three channels without names takes red, green and blue, in the order of
    natural images: if exactly these are named in another order, such as blue, green,
    red, they are reordered. Bands that only have numbers count as unnamed.

    Args:
        backbone: Gives its bands, if they have names.
        datamodule: Any data module, after its `setup`; None for loaders without one.

    Returns:
        None if the images are taken as they are.
    """
    bands, names = backbone.bands, band_names(datamodule)
    natural = rgb_order(bands or ())
    plain = isinstance(backbone, ViT | RotaryViT)
    if plain and (natural or (bands is None and backbone.in_channels == 3)):
        found = rgb_order(names or ())
        if found is None:  # nothing says which is which, or there are more
            return bands if names and len(names) != 3 else None
        order = natural or found
        chosen = tuple(found[order.index(name)] for name in bands or found)
        return None if chosen == names else chosen
    # Files without band names number their bands, in an order that the user may choose.
    unnamed = names is None or (
        len(names) == backbone.in_channels and all(name.isdigit() for name in names)
    )
    if bands is not None and unnamed and isinstance(backbone, ViT):
        if datamodule is not None:
            warnings.warn(
                f'{type(datamodule).__name__} does not name the bands of its images:'
                f' they are taken to be {", ".join(bands)}, in this order, as in the'
                ' weights',
                stacklevel=2,
            )
        return None
    return bands


def select_bands(datamodule: Any, wanted: Sequence[str]) -> SelectBands:
    """Return the map from a data module's images to the bands that a backbone takes.

    Args:
        datamodule: Any data module, after its `setup`; None for loaders without one,
            whose images are taken to have the wanted bands.
        wanted: Names of the backbone's bands.

    Raises:
        ValueError: If the data module does not name its bands, or lacks one.
    """
    names = band_names(datamodule) if datamodule is not None else tuple(wanted)
    if names is None:
        raise ValueError(
            f'{type(datamodule).__name__} does not name the bands of its images, but'
            f' the backbone takes {", ".join(wanted)}: set its *bands* to their names,'
            ' in the order of the channels'
        )
    return SelectBands(names, wanted)


def unit_range(
    given: tuple[Any, Any] | None,
    datamodule: Any,
    wanted: Sequence[str] | None = None,
    trained: Ends | None = None,
) -> UnitRange:
    """Return the map from raw sensor values to [0, 1].

    Args:
        given: (low, high) given by the user, scalars or one value per channel.
        datamodule: Gives the range if the user does not.
        wanted: Names of the channels, if they are selected from the data module's. If
            the data module's names are clearly Sentinel-2's and neither the user nor
            the data module gave a range, the range is SatMAE's: mean -+ 2 standard
            deviations of fMoW-Sentinel.
        trained: The range that the backbone's weights state, if any. It takes
            precedence over the data module's, unless that is known and in other units:
            its span differs by a factor of more than five, such as 8 bits instead of
            reflectance times 10,000. If both state a range and they differ, a warning
            says which is used.

    Raises:
        ValueError: If the range is not known, or a band is missing.
    """
    if given is not None:
        return UnitRange(*given)
    if trained is not None and not _other_units(datamodule, trained):
        return UnitRange(*trained)
    if datamodule is None:
        raise ValueError(
            'no data module gives the range of the pixel values: give *value_range* as'
            ' [low, high], e.g. [0, 255]'
        )
    if wanted is None:
        return UnitRange(*value_range(datamodule))
    bands = [spell_band(name) for name in wanted]
    names = band_names(datamodule) or ()
    known = _range_known(datamodule)
    sentinel = sentinel2.tells_sentinel2(names) and set(bands) <= set(sentinel2.BANDS)
    if sentinel and not known:
        return UnitRange(*sentinel2.reflectance_range(bands))
    low, high = value_range(datamodule)
    chosen = band_indices(names, wanted)
    return UnitRange(
        *(
            [end[i] for i in chosen] if len(end) == len(names) else end
            for end in (low, high)
        )
    )


def _range_known(datamodule: Any) -> bool:
    stated = getattr(datamodule, 'value_range', None) is not None
    return stated and getattr(datamodule, 'range_known', True)


def _other_units(datamodule: Any, trained: Ends) -> bool:
    """Return whether a data module's own range is in other units than the weights'."""
    if not _range_known(datamodule):
        return False
    own = _ends(datamodule.value_range)
    theirs = _ends(trained)
    other = in_other_units(own, theirs)
    if other or any((a != b).any() for a, b in zip(own, theirs, strict=True)):
        used = 'the data module' if other else 'the weights'
        warnings.warn(
            f'the weights were trained on values in {_short(theirs)}, and'
            f' {type(datamodule).__name__} has values in {_short(own)}: the range of'
            f' {used} is used; give *value_range* for another one',
            stacklevel=3,
        )
    return other


def in_other_units(one: Sequence[Any], another: Sequence[Any]) -> bool:
    """Return whether two ranges differ so much that their values have other units.

    Args:
        one: (low, high), scalars or one value per channel.
        another: The same for other images.
    """
    spans = [float((high - low).max()) for low, high in map(_ends, (one, another))]
    return max(spans) > _OTHER_UNITS * min(spans)


def _ends(value_range: Sequence[Any]) -> list[Tensor]:
    return [torch.as_tensor(end).flatten().float() for end in value_range]


def _short(ends: Sequence[Tensor]) -> list[float]:
    low, high = ends
    return [round(float(low.min()), 4), round(float(high.max()), 4)]


def no_data(datamodule: Any) -> float | None:
    """Return the value that a data module's images have where there is no data.

    It is the `no_data` of its data sets, which our folders and scenes have. Call it
    after the data module's `setup`. None if they have none.
    """
    sets = (getattr(datamodule, name, None) for name in _DATASETS)
    values = (getattr(dataset, 'no_data', None) for dataset in sets)
    return next((value for value in values if value is not None), None)


def require_predict_set(datamodule: Any) -> None:
    """Raise if a TorchGeo data module has nothing to predict on."""
    names = ('predict_dataset', 'dataset')
    if datamodule is not None and not any(
        getattr(datamodule, name, None) is not None for name in names
    ):
        raise ValueError(
            f'{type(datamodule).__name__} has no predict set, so it gives no'
            ' embeddings: point torchgeo_explora.datamodules.ImageFolderDataModule at'
            ' the folder of images'
        )
