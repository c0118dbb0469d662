"""Bands by name, and values rounded to 8 bits."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# 'B2', 'b02', 'S2_B02' (So2Sat) and 'B2, central wavelength 490 nm' (GDAL), but not
# Landsat 7's thermal band, which comes with two gains.
_SENTINEL2 = re.compile(r'(?:S2[_-])?B0*(\d{1,2}A?)(?![0-9A-Z]|_VCID).*', re.IGNORECASE)
# The order in which natural images have their channels, in three spellings.
_RGB = (('R', 'G', 'B'), ('RED', 'GREEN', 'BLUE'), ('B04', 'B03', 'B02'))


def spell_band(name: str) -> str:
    """Return a band's name in the spelling of Sentinel-2's products, such as 'B02'.

    Other names are returned unchanged.
    """
    match = _SENTINEL2.fullmatch(name)
    return f'B{match[1].upper().zfill(2)}' if match else name


def band_indices(available: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the wanted bands among those of an image.

    Different spellings of a Sentinel-2 band ('B2', 'B02') are the same band.

    Args:
        available: Names of an image's channels, in their order.
        wanted: Names of the bands to find.

    Raises:
        ValueError: If bands are missing or occur twice; the error names them all.
    """
    have = [spell_band(name) for name in available]
    need = [spell_band(name) for name in wanted]
    if twice := [w for w, n in zip(wanted, need, strict=True) if need.count(n) > 1]:
        raise ValueError(
            f'the backbone takes {", ".join(twice)}, which are spellings of one band:'
            ' name it once among its *bands*'
        )
    counts = [have.count(name) for name in need]
    for number, fault in ((0, 'do not have'), (2, 'have more than once')):
        wrong = [
            given
            for given, count in zip(wanted, counts, strict=True)
            if min(count, 2) == number
        ]
        if wrong:
            raise ValueError(
                f'the backbone takes {", ".join(wrong)}, which the images {fault}:'
                f' their bands are {", ".join(available)}; choose other *bands* and'
                ' *groups*, or other images'
            )
    return tuple(have.index(name) for name in need)


def rgb_order(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of three bands as red, green and blue, in this order.

    Args:
        names: Names of an image's channels, in their order.

    Returns:
        None if they are not exactly these three, under one of their usual names.
    """
    spelt = {spell_band(name).upper(): name for name in names}
    for colours in _RGB:
        if len(names) == 3 and spelt.keys() == set(colours):
            return tuple(spelt[colour] for colour in colours)
    return None


class SelectBands(nn.Module):
    """Select the bands of an image that a backbone takes, by name.

    Args:
        available: Names of the image's channels, in their order.
        wanted: Names of the bands to return, in their order.

    Raises:
        ValueError: If a band is missing or occurs twice; the error names it.
    """

    def __init__(self, available: Sequence[str], wanted: Sequence[str]) -> None:
        """Find the bands."""
        super().__init__()
        self.available = tuple(available)
        self.wanted = tuple(wanted)
        self.indices = band_indices(available, wanted)

    def forward(self, image: Tensor) -> Tensor:
        """Return the wanted bands, (..., K, H, W).

        Args:
            image: (..., C, H, W) with the channels of *available*.

        Raises:
            ValueError: If the image has another number of channels.
        """
        if image.shape[-3] != len(self.available):
            raise ValueError(
                f'the image has {image.shape[-3]} channels (shape'
                f' {tuple(image.shape)}), expected the {len(self.available)} bands'
                f' {", ".join(self.available)}: load one image at a time, of one sensor'
            )
        if self.wanted == self.available:
            return image
        return torch.stack([image.select(-3, i) for i in self.indices], dim=-3)


class Quantize(nn.Module):
    """Round values in [0, 1] down to those that 8 bits can hold, as SatMAE does.

    Its loader stores the clipped image in 8 bits, which truncates: floor(255 x) / 255.
    """

    def forward(self, unit: Tensor) -> Tensor:
        """Return values in [0, 1] of the same shape, multiples of 1 / 255."""
        return (unit * 255).floor() / 255
