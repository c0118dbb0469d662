"""Procedural Sentinel-2-like scenes of ten land-cover classes, in two domains."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.datasets.pixels import sentinel2
from torchgeo_explora.datasets.pixels.scaling import ValueRange, to_unit
from torchgeo_explora.datasets.synthetic.landscape import CLASSES, Canvas

# Scenes of each class that are drawn together: an image does not depend on the length.
_TOGETHER = 10

# Light scattered by clear air and by haze, in percent reflectance, B01 to B12.
_AIR = (9.0, 5.8, 3.2, 1.8, 1.4, 1.1, 0.9, 0.8, 0.6, 0.4, 0.0, 0.1, 0.1)
_HAZE = (8.0, 7.0, 5.8, 5.0, 4.6, 4.2, 3.9, 3.6, 3.3, 1.0, 0.1, 1.2, 0.8)
# Water vapour takes most of B09, and all but high clouds of B10.
_VAPOUR = (1, 1, 1, 1, 1, 1, 1, 1, 1, 0.33, 0.0, 1, 1)


@dataclass(frozen=True)
class Domain:
    """How a sensor over a region sees the land.

    Args:
        scale: Magnification of all structures.
        angle: Mean direction of fields and streets, in radians.
        season: Shift towards dry vegetation.
        haze: Least and most haze, 1 being dense.
        blur: Deviation of the point spread, in pixels.
        tint: Gain of red, green and blue; other bands take that of red.
        exposure: Deviation of the logarithm of a scene's gain.
        balance: Deviation of the logarithm of a band's gain in a scene.
        gamma: Exponent of the tone curve of 8-bit images.
        noise: Deviation of the noise, in parts of the full range.
        stripes: Deviation of the columns' offsets, in parts of the full range.
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


class SyntheticScenes(NonGeoDataset):
    """Seeded scenes like Sentinel-2's, 10 m a pixel, ten balanced land-cover classes.

    Made for quick starts and tests: nothing is downloaded. Classes share their
    materials, so mean colour alone tells few of them apart. The 'target' domain has
    another sensor look (haze, tint, blur, noise, stripes, and an exposure and white
    balance that change from scene to scene) and other fields (larger, turned, drier)
    than the 'source' domain.

    All scenes are drawn at construction and kept in memory (12 kB each in RGB, 104 kB
    with all bands at 64 pixels). Scene i depends on the seed, domain, split and i
    alone, and its 'rgb' and 's2' versions show the same land.

    Args:
        domain: 'source' or 'target'.
        split: 'train', 'val', 'test' or 'predict': names of independent draws.
        bands: 'rgb' (8-bit true colour, 0 to 255) or 's2' (13 bands, reflectance times
            10,000).
        size: Side in pixels; a larger scene shows more land.
        length: Number of scenes.
        seed: Seed of everything.
        transforms: Applied to each sample.

    Attributes:
        bands: Names of the bands.
        classes: Names of the classes; the label of scene i is i modulo their number.
        value_range: (low, high) of the values; for 's2' mean -+ 2 standard deviations
            of fMoW-Sentinel, by band.

    Raises:
        ValueError: If an argument is none of those above.
    """

    def __init__(
        self,
        domain: Literal['source', 'target'] = 'source',
        split: Literal['train', 'val', 'test', 'predict'] = 'train',
        bands: Literal['rgb', 's2'] = 'rgb',
        size: int = 64,
        length: int = 1000,
        seed: int = 0,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Draw all scenes."""
        if domain not in DOMAINS:
            raise ValueError(f'*domain* must be one of {list(DOMAINS)}, not {domain!r}')
        if bands not in ('rgb', 's2'):
            raise ValueError(f"*bands* must be 'rgb' or 's2', not {bands!r}")
        if size < 8 or length < 1:
            raise ValueError(
                f'*size* must be at least 8 and *length* at least 1, not {size} and '
                f'{length}'
            )
        self.transforms = transforms
        self.classes = list(CLASSES)
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}
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

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one scene.

        Args:
            index: From 0, or from the end if negative.

        Returns:
            ``image`` (C, H, W) in sensor values, ``label`` and ``index``, 0-d long.

        Raises:
            IndexError: If *index* is out of range.
        """
        index = range(len(self))[index]
        sample: dict[str, Any] = {
            'image': self.images[index].float(),
            'label': torch.tensor(index % len(self.classes)),
            'index': torch.tensor(index),
        }
        return sample if self.transforms is None else self.transforms(sample)

    def plot(
        self,
        sample: dict[str, Any],
        show_titles: bool = True,
        suptitle: str | None = None,
    ) -> Figure:
        """Plot a scene in true colour.

        Args:
            sample: As returned by :meth:`__getitem__`; 'prediction' is shown too.
            show_titles: Whether to write the class over the scene.
            suptitle: Title of the figure.

        Returns:
            The figure.
        """
        colours = [self.bands.index(band) for band in sentinel2.RGB]
        picture = to_unit(sample['image'], self.value_range)[colours]
        figure, axes = plt.subplots(figsize=(4, 4))
        axes.imshow(picture.permute(1, 2, 0).numpy())
        axes.axis('off')
        if show_titles:
            lines = [
                f'{key.capitalize()}: {self.classes[int(sample[key])]}'
                for key in ('label', 'prediction')
                if key in sample
            ]
            axes.set_title('\n'.join(lines))
        if suptitle is not None:
            figure.suptitle(suptitle)
        return figure


@contextmanager
def _one_thread() -> Iterator[None]:
    # The tensors are so small that threads wait for one another: on two busy cores
    # two threads were 40 times slower than one.
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
    """Turn reflectance at the ground into the sensor's numbers."""
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
    # B10 holds little more than nothing: its noise is as small.
    value = value + noise * 0.3 * of_band(
        tuple(0.02 if i == 10 else 1 for i in range(13))
    )
    value = value + of_band(tuple(0.0015 if i == 10 else 0 for i in range(13)))
    return (value * 10000).round().clamp(0, 32767).to(torch.int16)


def _blur(image: Tensor, deviation: float) -> Tensor:
    """Convolve with a Gaussian, rows then columns, as two products."""
    place = torch.arange(image.shape[-1])
    spread = (-((place[:, None] - place).square()) / (2 * deviation**2)).exp()
    spread = spread / spread.sum(1, keepdim=True)
    return spread @ image @ spread.mT
