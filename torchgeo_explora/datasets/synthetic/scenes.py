"""Procedural Sentinel-2-like scenes of ten land-cover classes, in two domains."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from torchgeo_explora.datasets.pixels import sentinel2
from torchgeo_explora.datasets.pixels.figure import pick_bands
from torchgeo_explora.datasets.pixels.scaling import ValueRange, to_unit
from torchgeo_explora.datasets.synthetic.landscape import CLASSES, Canvas
from torchgeo_explora.datasets.tables.dataset import (
    TableDataset,
    Transform,
    check_choice,
)

# Scenes of each class that are drawn together, so that a scene does not depend on the
# length of the data set.
_TOGETHER = 10

# Light scattered by clear air and by haze, in percent reflectance, B01 to B12.
_AIR = (9.0, 5.8, 3.2, 1.8, 1.4, 1.1, 0.9, 0.8, 0.6, 0.4, 0.0, 0.1, 0.1)
_HAZE = (8.0, 7.0, 5.8, 5.0, 4.6, 4.2, 3.9, 3.6, 3.3, 1.0, 0.1, 1.2, 0.8)
# Water vapour takes most of B09, and all but high clouds of B10.
_VAPOUR = (1, 1, 1, 1, 1, 1, 1, 1, 1, 0.33, 0.0, 1, 1)


@dataclass(frozen=True)
class Domain:
    """How a sensor sees the land of a region.

    Args:
        scale: Magnification of all structures.
        angle: Mean direction of fields and streets, in radians.
        season: Shift towards dry vegetation.
        haze: Least and most haze, where 1 is dense.
        blur: Standard deviation of the point spread function in pixels.
        tint: Gain of red, green and blue; bands beyond red have the gain of red.
        exposure: Standard deviation of the logarithm of a scene's gain.
        balance: Standard deviation of the logarithm of a band's gain in a scene.
        gamma: Exponent of the tone curve of 8-bit images.
        noise: Standard deviation of the noise, as a fraction of the full range.
        stripes: Standard deviation of the columns' offsets, as a fraction of the full
            range.
    """

    scale: float
    angle: float
    season: float
    haze: tuple[float, float]
    blur: float
    tint: tuple[float, float, float]
    exposure: float
    balance: float
    gamma: float
    noise: float
    stripes: float


DOMAINS = {
    'source': Domain(
        scale=1.0,
        angle=0.1,
        season=0.0,
        haze=(0.0, 0.25),
        blur=0.55,
        tint=(1.0, 1.0, 1.0),
        exposure=0.0,
        balance=0.0,
        gamma=0.85,
        noise=0.008,
        stripes=0.0,
    ),
    'target': Domain(
        scale=1.35,
        angle=0.75,
        season=0.5,
        haze=(0.4, 1.0),
        blur=0.8,
        tint=(1.15, 0.95, 0.8),
        exposure=0.25,
        balance=0.15,
        gamma=1.2,
        noise=0.02,
        stripes=0.01,
    ),
}


class SyntheticScenes(TableDataset):
    """Random Sentinel-2-like scenes of ten balanced land-cover classes, 10 m per pixel.

    For quick starts and tests: nothing is downloaded. Classes share materials, so the
    mean colour separates few of them. The 'target' domain differs from the 'source'
    domain in sensor (haze, tint, blur, noise, stripes, and an exposure and white
    balance that vary between scenes) and in fields (larger, rotated, drier).

    All scenes are drawn at construction and kept in memory (12 kB each in RGB, 104 kB
    with all bands at 64 pixels). Scene i depends only on the seed, domain, split and i.
    Its 'rgb' and 's2' versions show the same land.

    Args:
        domain: 'source' or 'target'.
        split: 'train', 'val', 'test' or 'predict': names of independent draws.
        bands: 'rgb' (8-bit true colour, 0 to 255) or 's2' (13 bands, reflectance times
            10,000); as an attribute, the names of the bands.
        size: Side in pixels; a larger scene shows more land.
        length: Number of scenes.
        seed: Seed of all random numbers.
        transforms: Applied to each sample.

    Attributes:
        classes: Names of the classes; the label of scene i is i modulo their number.
        value_range: (low, high) of the values; for 's2', mean +- 2 standard deviations
            of each band in fMoW-Sentinel.

    Raises:
        ValueError: If an argument is wrong.
    """

    classes = list(CLASSES)

    def __init__(
        self,
        domain: Literal['source', 'target'] = 'source',
        split: Literal['train', 'val', 'test', 'predict'] = 'train',
        bands: Literal['rgb', 's2'] = 'rgb',
        size: int = 64,
        length: int = 1000,
        seed: int = 0,
        transforms: Transform | None = None,
    ) -> None:
        """Draw all scenes."""
        check_choice('domain', domain, tuple(DOMAINS))
        check_choice('bands', bands, ('rgb', 's2'))
        if size < 8 or length < 1:
            raise ValueError(
                f'*size* must be at least 8 and *length* at least 1, not {size} and '
                f'{length}'
            )
        super().__init__(length, 'the synthetic scenes', 'raise', transforms)
        self.bands = sentinel2.RGB if bands == 'rgb' else sentinel2.BANDS
        self.value_range: ValueRange = (
            (0.0, 255.0) if bands == 'rgb' else sentinel2.reflectance_range(self.bands)
        )
        together = _TOGETHER * len(CLASSES)
        with _one_thread():
            parts = [
                _draw(DOMAINS[domain], bands, size, f'{seed}/{domain}/{split}/{start}')
                for start in range(0, length, together)
            ]
        self.images = torch.cat(parts)[:length]

    def read(self, index: int) -> dict[str, Any]:
        """Return a scene: `image` (C, H, W) in sensor values, and `label`, 0-d long."""
        return {
            'image': self.images[index].float(),
            'label': torch.tensor(index % len(self.classes)),
        }

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue in [0, 1]."""
        unit = to_unit(image, self.value_range)
        return pick_bands(unit, self.bands, sentinel2.RGB)


@contextmanager
def _one_thread() -> Iterator[None]:
    # The tensors are so small that threads mostly wait for each other: on two busy
    # cores, two threads were 40 times slower than one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _draw(domain: Domain, bands: str, size: int, key: str) -> Tensor:
    """Draw scenes of all classes in turn: (n, C, S, S), uint8 or int16."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
    chosen = sentinel2.RGB if bands == 'rgb' else sentinel2.BANDS
    drawn = [sentinel2.BANDS.index(band) for band in chosen]
    scenes = []
    for paint in CLASSES.values():
        canvas = Canvas(
            _TOGETHER,
            size,
            drawn,
            domain.scale,
            domain.angle,
            domain.season,
            generator,
        )
        scenes.append(paint(canvas))
    # (classes, n, C, S, S) -> (n * classes, C, S, S), the classes in turn
    reflectance = torch.stack(scenes, dim=1).flatten(0, 1)
    return _sense(reflectance, drawn, domain, bands == 'rgb', generator)


def _sense(
    reflectance: Tensor,
    drawn: list[int],
    domain: Domain,
    picture: bool,
    generator: torch.Generator,
) -> Tensor:
    """Turn reflectance on the ground into sensor values."""
    count, channels, _, size = reflectance.shape

    def per_scene(low: float, high: float) -> Tensor:
        draw = torch.rand((count, 1, 1, 1), generator=generator)
        return low + (high - low) * draw

    def of_band(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values)[drawn].view(-1, 1, 1)

    light, haze = per_scene(0.85, 1.15), per_scene(*domain.haze)
    stripes = torch.randn((count, 1, 1, size), generator=generator) * domain.stripes
    noise = torch.randn((count, channels, size, size), generator=generator)
    noise = stripes + noise * domain.noise
    exposure = torch.randn((count, 1, 1, 1), generator=generator) * domain.exposure
    balance = torch.randn((count, channels, 1, 1), generator=generator)
    gain = (exposure + balance * domain.balance).exp()

    value = _blur(reflectance, domain.blur) * light
    value = value * of_band(_VAPOUR) * (1 - 0.45 * haze)
    value = value + (of_band(_AIR) + of_band(_HAZE) * haze) / 100
    red, green, blue = domain.tint
    value = value * of_band((blue, blue, green, *[red] * 10)) * gain
    if picture:
        # Reflectance of 0.3 is white, as in the usual true-colour products.
        value = (value / 0.3).clamp(0, 1) ** domain.gamma
        return ((value + noise) * 255).round().clamp(0, 255).to(torch.uint8)
    # B10 is close to zero, so its noise is too.
    value = value + noise * 0.3 * of_band(
        tuple(0.02 if i == 10 else 1 for i in range(13))
    )
    value = value + of_band(tuple(0.0015 if i == 10 else 0 for i in range(13)))
    return (value * 10000).round().clamp(0, 32767).to(torch.int16)


def _blur(image: Tensor, std: float) -> Tensor:
    """Convolve with a Gaussian, rows then columns, as two matrix products."""
    place = torch.arange(image.shape[-1])
    spread = (-((place[:, None] - place).square()) / (2 * std**2)).exp()
    spread = spread / spread.sum(1, keepdim=True)
    return spread @ image @ spread.mT
