"""Sentinel-2 bands and the range of their values."""

import re
from collections.abc import Iterable, Sequence

from torchgeo_explora.augment.bands import spell_band

#: Bands of a Level-1C product, in the order of their wavelength.
BANDS = (
    *('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07'),
    *('B08', 'B8A', 'B09', 'B10', 'B11', 'B12'),
)
RGB = ('B04', 'B03', 'B02')

# Statistics of fMoW-Sentinel (Level-1C digital numbers) that SatMAE normalises with.
_STATISTICS = (
    (1370.19151926, 633.15169573),
    (1184.3824625, 650.2842772),
    (1120.77120066, 712.12507725),
    (1136.26026392, 965.23119807),
    (1263.73947144, 948.9819932),
    (1645.40315151, 1108.06650639),
    (1846.87040806, 1258.36394548),
    (1762.59530783, 1233.1492281),
    (1972.62420416, 1364.38688993),
    (582.72633433, 472.37967789),
    (14.77112979, 14.3114637),
    (1732.16362238, 1310.36996126),
    (1247.91870117, 1087.6020813),
)

#: Mean digital number of each band in fMoW-Sentinel.
MEAN = dict(zip(BANDS, (mean for mean, _ in _STATISTICS), strict=True))
#: Standard deviation of each band in fMoW-Sentinel.
STD = dict(zip(BANDS, (std for _, std in _STATISTICS), strict=True))


def reflectance_range(
    bands: Sequence[str],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return SatMAE's (low, high) of Level-1C values: mean +- 2 standard deviations.

    Level-2A values differ, especially in B01 and B09, and have no B10.

    Args:
        bands: Band names such as 'B8A', in any order.

    Raises:
        ValueError: If a name is not a Sentinel-2 band.
    """
    unknown = [band for band in bands if band not in MEAN]
    if unknown:
        raise ValueError(f'*bands* has {unknown}, which are not among {BANDS}')
    return (
        tuple(MEAN[band] - 2 * STD[band] for band in bands),
        tuple(MEAN[band] + 2 * STD[band] for band in bands),
    )


def tells_sentinel2(names: Iterable[str]) -> bool:
    """Return whether at least one band name can only be of Sentinel-2.

    Landsat has a B2 too, with other values. Two digits ('B02'), the sensor ('S2_B2') or
    a band that Landsat lacks (B8A, B12) identify Sentinel-2.
    """
    own = re.compile(r'S2[_-]|B0', re.IGNORECASE)
    return any(spell_band(n) in ('B8A', 'B12') or own.match(n) for n in names)
