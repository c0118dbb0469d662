"""Write a small fMoW-Sentinel: `python tests/data/fmow_sentinel.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import rasterio

#: Rows of the CSV files: (class, place, image, time), not in order.
ROWS = {
    'train': [
        ('zoo', 3, 0, '2017-05-06T10:00:00Z'),
        ('airport', 10, 1, '2016-01-02T10:00:00Z'),
        ('airport', 10, 0, '2018-01-02T10:00:00Z'),
        ('airport', 2, 7, '2016-01-02T10:00:00Z'),
        ('barn', 0, 0, '2015-07-08T10:00:00Z'),
    ],
    'val': [
        ('barn', 0, 0, '2019-05-06T10:00:00Z'),
        ('airport', 5, 0, '2016-03-04T10:00:00Z'),
    ],
    'test_gt': [('zoo', 0, 0, '2016-03-04T10:00:00Z')],
}
#: Digital number of band i in image j: LEVEL * (i + 1) + j.
LEVEL = 100


def outline(split: str, number: int) -> str:
    """Return the outline of a place, far from all others."""
    east = 30 * list(ROWS).index(split) + number
    corners = [(0, 0), (0.02, 0), (0.02, 0.04), (0, 0.04), (0, 0)]
    return f'POLYGON (({", ".join(f"{east + x} {y}" for x, y in corners)}))'


def write_tiff(
    path: Path, image: int, bands: int = 13, names: tuple[str, ...] = ()
) -> None:
    """Write a GeoTIFF of 20 x 30 pixels whose bands are constant."""
    pixels = LEVEL * np.arange(1, bands + 1)[:, None, None] + image
    pixels = np.broadcast_to(pixels, (bands, 20, 30)).astype('uint16')
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        'w',
        count=bands,
        height=20,
        width=30,
        dtype='uint16',
        crs='EPSG:32632',
        transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10),
    ) as file:
        file.write(pixels)
        if names:
            file.descriptions = names


def write_fmow_sentinel(root: Path) -> Path:
    """Write all splits and return the folder."""
    for split, rows in ROWS.items():
        # An index without a name comes first, as in the published files.
        lines = [',category,location_id,image_id,timestamp,polygon']
        for number, (category, place, image, time) in enumerate(rows):
            shape = outline(split, number)
            lines.append(f'{number},{category},{place},{image},{time},"{shape}"')
            folder = root / 'fmow-sentinel' / split / category / f'{category}_{place}'
            write_tiff(folder / f'{category}_{place}_{image}.tif', image)
        (root / f'{split}.csv').write_text('\n'.join(lines) + '\n')
    return root


if __name__ == '__main__':
    write_fmow_sentinel(Path(sys.argv[1]))
