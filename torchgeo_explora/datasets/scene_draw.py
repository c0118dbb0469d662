"""Windows of scenes, drawn so that every place is as likely as any other."""

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora.datasets.scene_ground import Ground

# A place that many scenes show is drawn as often, and mostly rejected; this many
# rounds are far beyond what that can take.
_ROUNDS = 10_000


def draw_windows(ground: Ground, length: int, seed: int) -> NDArray[np.int64]:
    """Draw windows that are usable.

    All usable positions of all scenes are equally likely at first; a window is then
    kept with probability 1 / n where n scenes can be used at its centre. So what counts
    is the ground, not how often it was photographed.

    Args:
        ground: The scenes.
        length: N, number of windows.
        seed: They depend on it, and on the scenes, alone.

    Returns:
        (N, 3): scene, and row and column of the upper left corner in steps.
    """
    generator = np.random.default_rng(seed)
    counts = ground.table['windows'].to_numpy()
    drawn: list[NDArray[np.int64]] = []
    missing = length
    for _ in range(_ROUNDS):
        shares = generator.multinomial(2 * missing, counts / counts.sum())
        batch, longitudes, latitudes = [], [], []
        for scene in np.flatnonzero(shares):
            flat = generator.choice(ground.positions(int(scene)), shares[scene])
            rows, columns = np.divmod(flat, ground.shapes[scene][1])
            batch.append(np.stack([np.full_like(rows, scene), rows, columns], 1))
            east, north = ground.centres(int(scene), rows, columns)
            longitudes.append(east)
            latitudes.append(north)
        windows = np.concatenate(batch)
        places, _scenes = ground.scenes_at(
            np.concatenate(longitudes), np.concatenate(latitudes)
        )
        seen = np.bincount(places, minlength=len(windows))
        keep = generator.random(len(windows)) * np.maximum(seen, 1) < 1
        kept = generator.permutation(windows[keep])[:missing]
        drawn.append(kept)
        missing -= len(kept)
        if not missing:
            break
    return np.concatenate(drawn)


def fair_length(ground: Ground) -> int:
    """Return how many windows side by side cover what can be used, about once."""
    counts = ground.table['windows'].to_numpy()
    side = ground.size // ground.step
    return max(1, int(counts.sum() // side**2))
