"""Procedural land cover: reflectance of scenes of ten classes.

Lengths are in pixels of 10 m, before the domain's scale. Letters: n scenes, C bands,
S pixels per side.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Surface reflectance in percent, in the order of the Sentinel-2 bands B01 to B12.
_SPECTRA = {
    'water': (3.0, 3.2, 3.0, 1.8, 1.6, 1.3, 1.2, 1.0, 0.9, 0.8, 0.1, 0.6, 0.4),
    'silt': (4.5, 5.5, 8.0, 7.2, 6.8, 4.2, 3.9, 3.2, 2.9, 2.4, 0.1, 1.2, 0.9),
    'conifer': (1.8, 2.0, 3.4, 2.4, 5.5, 15, 18, 20, 21.5, 21, 0.1, 9.0, 4.0),
    'broadleaf': (2.0, 2.6, 5.2, 3.2, 8.5, 26, 34, 36, 38, 37, 0.1, 17, 8.0),
    'crop': (2.4, 3.2, 7.2, 4.6, 10.5, 31, 40, 43, 45, 44, 0.1, 20, 10),
    'grass': (3.0, 4.0, 7.8, 6.2, 12, 25, 30, 32, 34, 33, 0.1, 23, 13),
    'straw': (5.0, 7.0, 11, 13.5, 18, 23, 26, 29, 31, 30, 0.1, 31, 21),
    'soil': (5.0, 6.2, 8.2, 10.5, 12.5, 14, 15, 16.5, 17.5, 17, 0.1, 22, 19),
    'loess': (8.0, 10.5, 14.5, 19, 22, 24, 25.5, 27, 28.5, 28, 0.1, 34, 30),
    'sand': (12, 16, 22, 28, 30, 32, 33, 35, 36, 35, 0.1, 42, 38),
    'asphalt': (7.0, 8.0, 8.8, 9.6, 10.2, 10.8, 11.2, 12, 12.4, 12.3, 0.1, 14.5, 14),
    'concrete': (13, 16, 18.5, 20.5, 21.5, 22.5, 23, 24, 24.5, 24.5, 0.1, 27, 25),
    'tile': (6.0, 7.6, 10.5, 17, 19.5, 21.5, 23, 25, 26, 26, 0.1, 31, 28),
    'metal': (25, 30, 32, 33, 33, 33, 33, 33, 33, 32, 0.1, 30, 26),
}
_INDEX = {name: i for i, name in enumerate(_SPECTRA)}


class Canvas:
    """Coordinates, noise and colours of n scenes.

    Args:
        count: n.
        size: S.
        bands: Positions, in B01 to B12, of the bands to draw.
        scale: Magnification of all structures.
        angle: Mean direction of fields and streets, in radians.
        season: Shift towards dry vegetation; 0 for none.
        generator: Source of all random numbers.
    """

    def __init__(
        self,
        count: int,
        size: int,
        bands: list[int],
        scale: float,
        angle: float,
        season: float,
        generator: torch.Generator,
    ) -> None:
        """Draw the colours of each scene."""
        self.count, self.size, self.scale, self.angle = count, size, scale, angle
        self.generator = generator
        self.season = season + self.normal(0.5)
        axis = (torch.arange(size) - (size - 1) / 2) / scale
        self.y, self.x = axis.view(1, size, 1), axis.view(1, 1, size)
        # Materials vary between scenes about as much as they differ from each other, so
        # that colour is not enough to tell them apart.
        spectra = torch.tensor(list(_SPECTRA.values()))[:, bands] / 100
        shape = (count, len(_SPECTRA), 1)
        tilt = torch.linspace(-1, 1, 13)[bands] * self._randn(shape) * 0.2
        self.spectra = spectra * (self._randn(shape) * 0.2 + tilt).exp()

    def _randn(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def normal(self, std: float) -> Tensor:
        """Draw one number per scene, (n, 1, 1)."""
        return self._randn((self.count, 1, 1)) * std

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw one number per scene, (n, 1, 1), in [low, high)."""
        draw = torch.rand((self.count, 1, 1), generator=self.generator)
        return low + (high - low) * draw

    def chance(self, probability: float) -> Tensor:
        """Draw 1 with the given probability, else 0: (n, 1, 1)."""
        return (self.uniform(0, 1) < probability).float()

    def noise(self, length: float) -> Tensor:
        """Draw smooth noise with a standard deviation of about 1: (n, S, S)."""
        length = max(length * self.scale, 1.0)
        place = (torch.arange(self.size) + 0.5) / length
        cell, t = place.long(), place.frac()
        # Cubic B-spline, rows then columns: two small matrix products, not a resize.
        weights = torch.stack(
            [
                (1 - t) ** 3,
                3 * t**3 - 6 * t**2 + 4,
                -3 * t**3 + 3 * t**2 + 3 * t + 1,
                t**3,
            ],
            dim=1,
        )
        cells = int(cell[-1]) + 4
        spline = torch.zeros(self.size, cells)
        spline.scatter_(1, cell[:, None] + torch.arange(4), weights / 6)
        grid = self._randn((self.count, cells, cells))
        # The spline about halves the standard deviation.
        return spline @ grid @ spline.mT * 2

    def fractal(self, length: float, octaves: int = 3) -> Tensor:
        """Draw noise with detail down to length / 2^octaves: (n, S, S)."""
        layers = [self.noise(length / 2**i) * 0.6**i for i in range(octaves)]
        return torch.stack(layers).sum(0) / 1.25

    def turned(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Return coordinates along rotated axes, (n, S, S) each."""
        cosine, sine = angle.cos(), angle.sin()
        return cosine * self.x + sine * self.y, cosine * self.y - sine * self.x

    def direction(self) -> Tensor:
        """Draw a direction of fields or streets, (n, 1, 1)."""
        return self.angle + self.normal(0.25)

    def table(self, ident: Tensor) -> Tensor:
        """Draw a value in [0, 1) for each number of a map: (n, S, S)."""
        table = torch.rand((self.count, 509), generator=self.generator)
        return table.gather(1, ident.long().remainder(509).flatten(1)).view_as(ident)

    def plain(self, material: str) -> Tensor:
        """Return scenes of one material, (n, C, S, S)."""
        colour = self.spectra[:, _INDEX[material], :, None, None]
        return colour.expand(-1, -1, self.size, self.size)

    def paint(self, image: Tensor, material: str, opacity: Tensor) -> Tensor:
        """Paint a material over scenes; opacity (n, S, S) in [0, 1]."""
        return torch.lerp(image, self.plain(material), opacity[:, None])


def _soft(distance: Tensor, width: float = 0.5) -> Tensor:
    """Return 1 inside (positive distance) and 0 outside, with a soft edge."""
    return (distance / (2 * width) + 0.5).clamp(0, 1)


def _shade(image: Tensor, factor: Tensor) -> Tensor:
    return image * factor[:, None].clamp_min(0.2)


def _parcels(
    canvas: Canvas, u: Tensor, v: Tensor, width: Tensor, height: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide the plane into parcels: number, distance to the border, position inside.

    The position is from -1 to 1 along u and v. All are (n, S, S).
    """
    column = (u / width).floor()
    shifted = v + canvas.table(column) * height
    row = (shifted / height).floor()
    across, along = u / width - column - 0.5, shifted / height - row - 0.5
    border = torch.minimum((0.5 - across.abs()) * width, (0.5 - along.abs()) * height)
    return column * 37 + row * 11, border, across * 2, along * 2


def annual_crop(canvas: Canvas) -> Tensor:
    """Draw fields of several crops and bare soil, with tracks between."""
    u, v = canvas.turned(canvas.direction())
    bend = canvas.fractal(40, 2) * 1.5
    width, height = canvas.uniform(7, 18), canvas.uniform(12, 34)
    ident, border, across, _ = _parcels(canvas, u + bend, v, width, height)
    image = canvas.plain('soil')
    stage = canvas.table(ident) * 4 + canvas.season
    for i, material in enumerate(('crop', 'grass', 'straw', 'loess')):
        centre = (0.4, 1.4, 2.4, 4.2)[i]
        image = canvas.paint(image, material, _soft(0.55 - (stage - centre).abs(), 0.1))
    rows = (across * width * 1.3).sin() * 0.05 * canvas.table(ident)
    image = _shade(image, 1 + rows + (canvas.table(ident) - 0.5) * 0.35)
    image = _shade(image, 1 + canvas.noise(3) * 0.03)
    return canvas.paint(image, 'loess', _soft(0.7 - border) * canvas.uniform(0, 0.7))


def bare_land(canvas: Canvas) -> Tensor:
    """Draw sand, dunes and gullies with sparse shrubs."""
    mix = canvas.fractal(30)
    image = canvas.paint(canvas.plain('soil'), 'loess', _soft(mix + canvas.normal(1)))
    image = canvas.paint(image, 'sand', _soft(mix + canvas.normal(1), 1) * 0.8)
    u, _ = canvas.turned(canvas.uniform(0, 3.14))
    dunes = ((u + mix * 3) / canvas.uniform(1.0, 2.2)).sin() * canvas.uniform(0, 0.14)
    image = _shade(image, 1 + dunes + canvas.fractal(8) * 0.07)
    gully = canvas.fractal(26).abs()
    image = canvas.paint(image, 'soil', _soft(0.1 - gully, 0.1) * canvas.uniform(0, 1))
    shrubs = _soft(canvas.noise(1.8) - canvas.uniform(1.5, 3), 0.3)
    return canvas.paint(image, 'straw', shrubs * 0.6)


def forest(canvas: Canvas) -> Tensor:
    """Draw a rough canopy, with relief and clearings."""
    share = _soft(canvas.fractal(20) + canvas.normal(1.2), 0.8)
    image = canvas.paint(canvas.plain('conifer'), 'broadleaf', share)
    image = canvas.paint(
        image, 'straw', _soft(canvas.season - 0.8, 1).expand_as(share) * 0.3
    )
    opening = _soft(canvas.fractal(24) - canvas.uniform(1.1, 2.6), 0.15)
    image = canvas.paint(image, 'grass', opening)
    track = _soft(0.06 - canvas.fractal(30).abs(), 0.05) * canvas.chance(0.3)
    image = canvas.paint(image, 'loess', track * 0.6)
    crowns = canvas.noise(1.6) * 0.16 + canvas.noise(3) * 0.1
    return _shade(image, 1 + crowns * (1 - opening) + canvas.fractal(30) * 0.12)


def highway(canvas: Canvas) -> Tensor:
    """Draw a dual carriageway through a landscape, sometimes with a junction."""
    image = background(canvas)
    u, v = canvas.turned(canvas.uniform(0, 3.14))
    v = v + u.square() * canvas.normal(0.006) + canvas.normal(6)
    half = canvas.uniform(1.4, 2.1)
    image = canvas.paint(image, 'grass', _soft(half + 1.3 - v.abs()) * 0.7)
    crossing = (u + v * canvas.normal(0.4)).abs()
    image = canvas.paint(image, 'asphalt', _soft(1.0 - crossing) * canvas.chance(0.4))
    radius = canvas.uniform(5, 9)
    side = v.abs() - radius
    ring = ((u - canvas.normal(8)).square() + side.square()).sqrt() - radius
    image = canvas.paint(image, 'asphalt', _soft(0.7 - ring.abs()) * canvas.chance(0.3))
    image = canvas.paint(image, 'asphalt', _soft(half - v.abs()))
    image = canvas.paint(
        image, 'concrete', _soft(half - v.abs()) * canvas.uniform(0, 0.8)
    )
    return canvas.paint(image, 'grass', _soft(0.35 - v.abs()) * 0.6)


def industrial(canvas: Canvas) -> Tensor:
    """Draw large flat roofs between yards and roads."""
    u, v = canvas.turned(canvas.direction())
    width, height = canvas.uniform(11, 24), canvas.uniform(10, 20)
    ident, border, across, along = _parcels(canvas, u, v, width, height)
    kind = canvas.table(ident)
    image = canvas.paint(canvas.plain('asphalt'), 'concrete', _soft(kind - 0.6, 0.1))
    image = canvas.paint(image, 'grass', _soft(0.3 - kind, 0.05))
    image = canvas.paint(image, 'soil', _soft(0.12 - kind, 0.05))
    image = _shade(image, 1 + canvas.noise(1.5) * 0.08)
    fill = 0.4 + 0.5 * canvas.table(ident)
    inside = torch.minimum(
        (fill - across.abs()) * width / 2, (0.8 - along.abs()) * height / 2
    )
    built = (canvas.table(ident) < 0.8).float()
    image = _shade(image, 1 - 0.5 * _soft(inside + 1.1) * built)
    roof, tone = canvas.table(ident), canvas.table(ident)
    for material, edge in (('concrete', 1.0), ('metal', 0.6), ('asphalt', 0.25)):
        image = canvas.paint(image, material, _soft(inside) * built * (roof < edge))
    ribs = ((across * width).mul(1.6).sin() * 0.06 + tone - 0.5) * 0.5
    image = _shade(image, 1 + ribs * _soft(inside) * built)
    return canvas.paint(image, 'asphalt', _soft(0.9 - border))


def orchard(canvas: Canvas) -> Tensor:
    """Draw blocks of trees in rows."""
    u, v = canvas.turned(canvas.direction())
    width, height = canvas.uniform(18, 40), canvas.uniform(18, 40)
    u, v = u + canvas.fractal(40, 2), v + canvas.fractal(40, 2)
    ident, border, _, _ = _parcels(canvas, u, v, width, height)
    mix = canvas.table(ident) * 0.5 + canvas.uniform(0, 1) * 0.6
    image = canvas.paint(canvas.plain('soil'), 'grass', _soft(mix - 0.4, 0.15))
    image = canvas.paint(image, 'loess', _soft(canvas.table(ident) - 0.6, 0.1) * 0.7)
    image = _shade(image, 1 + canvas.fractal(10) * 0.06)
    turn = canvas.table(ident) < 0.5
    row, step = torch.where(turn, u, v), torch.where(turn, v, u)
    space = canvas.uniform(2.8, 5.5)
    # Trees stand closer within a row than the rows do, until they touch.
    gap = space * canvas.uniform(0.5, 1.0)
    along = (step / gap * 6.283).cos() * canvas.uniform(0.2, 0.8)
    trees = (row / space * 6.283).cos() + along + canvas.noise(2) * 0.25
    young = canvas.table(ident) < 0.25
    crown = _soft(trees - torch.where(young, 0.9, 0.1), 0.6)
    crown = crown * (canvas.table(ident) > 0.12)
    crown = crown * _soft(border - 1.5) * 0.9
    image = canvas.paint(image, 'conifer', crown * canvas.uniform(0, 1))
    image = canvas.paint(image, 'broadleaf', crown * 0.7)
    return canvas.paint(image, 'loess', _soft(0.8 - border) * canvas.uniform(0.2, 0.9))


def pasture(canvas: Canvas) -> Tensor:
    """Draw grassland with soft patches, hedges and single trees."""
    patches = canvas.fractal(22) + canvas.season
    image = canvas.paint(
        canvas.plain('grass'), 'crop', _soft(-patches - 0.3, 0.6) * 0.7
    )
    image = canvas.paint(image, 'straw', _soft(patches - 0.5, 0.8) * 0.8)
    image = _shade(image, 1 + canvas.fractal(7, 2) * 0.05 + canvas.fractal(34) * 0.08)
    u, v = canvas.turned(canvas.direction())
    width, height = canvas.uniform(22, 50), canvas.uniform(26, 60)
    bend = canvas.fractal(24, 2)
    _, border, _, _ = _parcels(canvas, u + bend * 4, v + bend * 3, width, height)
    hedge = _soft(0.9 - border) * _soft(canvas.noise(4) + 0.5) * canvas.chance(0.6)
    trees = _soft(canvas.noise(2.4) - canvas.uniform(2.0, 3.4), 0.2)
    return canvas.paint(image, 'broadleaf', torch.maximum(hedge, trees) * 0.85)


def residential(canvas: Canvas) -> Tensor:
    """Draw small houses with gardens along a grid of streets."""
    u, v = canvas.turned(canvas.direction())
    bend = canvas.fractal(40, 2)
    u, v = u + bend * 1.5, v + bend
    green = _soft(canvas.noise(3) + canvas.normal(0.7), 0.6)
    image = canvas.paint(canvas.plain('grass'), 'broadleaf', green)
    image = canvas.paint(image, 'concrete', _soft(canvas.noise(4) - 0.4) * 0.4)
    lot = canvas.uniform(3.6, 5.2)
    block = lot * 2 + 2
    ident, _, across, along = _parcels(canvas, u, v, lot, lot)
    wide = 0.5 + 0.3 * canvas.table(ident)
    inside = torch.minimum(wide - across.abs(), 0.62 - along.abs()) * lot / 2
    house = _soft(inside) * (canvas.table(ident) < canvas.uniform(0.6, 0.95))
    tone, local = canvas.table(ident), canvas.uniform(0, 0.6)
    image = _shade(image, 1 - 0.35 * _soft(inside + 0.7))
    image = canvas.paint(image, 'tile', house)
    image = canvas.paint(image, 'concrete', house * (tone < local))
    image = canvas.paint(image, 'asphalt', house * (tone > 0.85))
    street = ((u / block).remainder(1) - 0.5).abs() * block
    cross = ((v / (block * 2.5)).remainder(1) - 0.5).abs() * block * 2.5
    image = canvas.paint(image, 'asphalt', _soft(0.7 - torch.minimum(street, cross)))
    return _shade(image, 1 + canvas.noise(1.2) * 0.08)


def river(canvas: Canvas) -> Tensor:
    """Draw a winding river through a landscape."""
    image = background(canvas)
    u, v = canvas.turned(canvas.uniform(0, 3.14))
    bend = (u / canvas.uniform(6, 14) + canvas.uniform(0, 6)).sin()
    v = v + bend * canvas.uniform(1, 6) + canvas.fractal(16, 2) * 1.2 + canvas.normal(5)
    half = canvas.uniform(1.8, 6) + canvas.noise(20) * 0.5
    bank = _soft(half + 1.6 - v.abs(), 0.8)
    image = canvas.paint(image, 'broadleaf', bank * canvas.chance(0.6) * 0.9)
    image = canvas.paint(
        image, 'sand', _soft(half + 0.8 - v.abs()) * canvas.chance(0.4)
    )
    inside = _soft(half - v.abs())
    return torch.lerp(image, _open_water(canvas), inside[:, None])


def water(canvas: Canvas) -> Tensor:
    """Draw a lake or sea, sometimes with its shore."""
    image = _open_water(canvas)
    u, _ = canvas.turned(canvas.uniform(0, 6.28))
    shore = u + canvas.fractal(18) * 2.5 - canvas.uniform(8, 24) / canvas.scale
    shore = shore - 99 * (1 - canvas.chance(0.5))
    image = canvas.paint(image, 'sand', _soft(shore + 1.2))
    return torch.lerp(image, background(canvas), _soft(shore)[:, None])


def _open_water(canvas: Canvas) -> Tensor:
    silt = _soft(canvas.fractal(30) + canvas.normal(1.5), 1.5)
    image = canvas.paint(canvas.plain('water'), 'silt', silt)
    green = canvas.chance(0.3) * canvas.uniform(0, 0.35)
    image = canvas.paint(image, 'broadleaf', green.expand_as(silt))
    return _shade(image, 1 + canvas.noise(1.5) * 0.05)


def background(canvas: Canvas) -> Tensor:
    """Draw two covers, chosen for each scene, on either side of a border."""
    covers = torch.stack(
        [draw(canvas) for draw in (annual_crop, pasture, forest, bare_land)]
    )
    scenes = torch.arange(canvas.count)
    first, second = (canvas.uniform(0, 4).long().flatten() for _ in range(2))
    border = _soft(canvas.fractal(40) + canvas.normal(1), 0.05)[:, None]
    return torch.lerp(covers[first, scenes], covers[second, scenes], border)


#: The classes in the order of their labels.
CLASSES: dict[str, Callable[[Canvas], Tensor]] = {
    draw.__name__: draw
    for draw in (
        annual_crop,
        bare_land,
        forest,
        highway,
        industrial,
        orchard,
        pasture,
        residential,
        river,
        water,
    )
}
