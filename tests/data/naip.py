"""Write a small NAIP land-cover set: `python tests/data/naip.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np

#: Code of the land cover and split of each tile.
CODES = [61, 1, 36, 61, 1, 36, 36, 195, 61, 1]
SPLITS = [0, 0, 0, 0, 1, 1, 2, 2, 2, 0]


def write_naip(root: Path) -> Path:
    """Write ten tiles of 10 x 10 pixels; band b of tile i is 10 i + b."""
    folder = root / 'supervised_50_100'
    folder.mkdir(parents=True)
    for tile in range(len(CODES)):
        pixels = np.empty((10, 10, 4), np.uint8)
        pixels[:] = 10 * tile + np.arange(4)
        np.save(folder / f'{tile}tile.npy', pixels)
    np.save(root / 'y_50_100.npy', np.array(CODES))
    np.save(root / 'splits.npy', np.array(SPLITS))
    return root


if __name__ == '__main__':
    write_naip(Path(sys.argv[1]))
