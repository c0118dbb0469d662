"""Random windows of scenes, in which every place is equally likely."""

import numpy as np
import shapely  # type: ignore[import-untyped]
from numpy.typing import NDArray

from torchgeo_explora.datasets.scenes.ground import Floats, Ground, Integers

# Places that share a list of the scenes near them.
_GROUP = 64


def draw_windows(ground: Ground, length: int, seed: int) -> NDArray[np.int64]:
    """Draw usable windows.

    First a place is drawn, every spot on the ground being equally likely, then one of
    the scenes that can be used there, each with the same probability. So what counts is
    the ground, not how often or at what resolution it was recorded.

    Args:
        ground: The scenes, whose index has owners.
        length: N, number of windows.
        seed: The windows depend only on it and on the scenes.

    Returns:
        (N, 3): scene, and row and column of the upper left corner in steps.
    """
    generator = np.random.default_rng(seed)
    weights = ground.table['places'].to_numpy() * ground.areas()
    counts = generator.multinomial(length, weights / weights.sum())
    owners = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate(
        [
            generator.choice(np.flatnonzero(ground.bits(owner, 'owned')), counts[owner])
            for owner in np.flatnonzero(counts).tolist()
        ]
    )
    rows, columns = np.divmod(places, ground.shapes[owners, 1])
    longitudes, latitudes = ground.centres(owners, rows, columns)
    groups = _groups(ground, owners, rows, columns)
    scenes = _choose(ground, owners, longitudes, latitudes, groups, generator)
    rows, columns, _ = ground.position(scenes, longitudes, latitudes)
    return generator.permutation(np.stack([scenes, rows, columns], 1))


def _groups(
    ground: Ground, owners: Integers, rows: Integers, columns: Integers
) -> Integers:
    """Return for each place the number, from 0, of the part of its owner it is in."""
    counts = np.bincount(owners)[owners]
    parts = np.ceil(np.sqrt(counts / _GROUP)).astype(np.int64)
    shapes = ground.shapes[owners]
    key = (owners * parts.max() + rows * parts // shapes[:, 0]) * parts.max()
    key += columns * parts // shapes[:, 1]
    return np.unique(key, return_inverse=True)[1]


def _choose(
    ground: Ground,
    owners: Integers,
    longitudes: Floats,
    latitudes: Floats,
    groups: Integers,
    generator: np.random.Generator,
) -> Integers:
    """Draw one of the scenes that can be used at each place.

    Scenes near a place are tried at random until one can be used there. In a deep stack
    of scenes that takes one or two tries.
    """
    order = np.argsort(groups, kind='stable')
    first = np.unique(groups[order], return_index=True)[1]
    east, north = longitudes[order], latitudes[order]
    boxes = shapely.box(
        np.minimum.reduceat(east, first),
        np.minimum.reduceat(north, first),
        np.maximum.reduceat(east, first),
        np.maximum.reduceat(north, first),
    )
    near, scenes = ground.tree.query(boxes)
    # The owner can be used at its own places; it must be in the list once.
    owner = owners[order][first]
    others = scenes != owner[near]
    near = np.concatenate([near[others], np.arange(len(first))])
    scenes = np.concatenate([scenes[others], owner])
    scenes = scenes[np.lexsort((scenes, near))]
    counts = np.bincount(near)
    starts = np.cumsum(counts) - counts
    chosen, left = owners.copy(), np.arange(len(owners))
    while left.size:
        group = groups[left]
        tried = scenes[starts[group] + generator.integers(counts[group])]
        usable = ground.position(tried, longitudes[left], latitudes[left])[2]
        usable |= tried == owners[left]
        chosen[left[usable]] = tried[usable]
        left = left[~usable]
    return chosen


def fair_length(ground: Ground) -> int:
    """Return how many windows, side by side, cover the usable part of all scenes."""
    counts = ground.table['windows'].to_numpy()
    side = ground.size // ground.step
    return max(1, int(counts.sum() // side**2))
