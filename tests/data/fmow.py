"""Write a small fMoW in the official layout: `python tests/data/fmow.py FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

#: (W, H) of the images and [x, y, w, h] of their boxes.
SIZE = (60, 40)
BOX = [20, 10, 16, 12]
#: Times of the images of each place, by split: {(class, number): [times]}.
PLACES = {
    'train': {
        ('airport', 0): ['2015-07-25T07:23:14Z', '2002-01-01T00:00:00Z'],
        ('airport', 1): ['2016-12-31T23:59:59Z'],
        ('barn', 0): [
            '2009-10-05T11:30:45Z',
            '2011-03-05T12:00:00Z',
            '2010-02-05T13:00:00Z',
            '2012-04-05T14:00:00Z',
        ],
        ('zoo', 0): ['2014-05-06T01:02:03Z'],
    },
    'val': {
        ('barn', 0): ['2013-06-07T08:09:10Z', '2014-06-07T08:09:10Z'],
        ('zoo', 0): ['2014-05-06T01:02:03Z', '2015-05-06T02:02:03Z'],
    },
    'test_gt': {('barn', 0): ['2013-06-07T08:09:10Z', '2014-06-07T08:09:10Z']},
}
#: Colour outside of the boxes.
GROUND = (40, 80, 120)
CLASSES = ('airport', 'barn', 'zoo')


def colour(category: str, image: int) -> tuple[int, int, int]:
    """Return the colour inside of a box."""
    return 60 + 60 * CLASSES.index(category), 20 + 40 * image, 200


def polygon(split: str, category: str, number: int) -> str:
    """Return a box's outline on the ground, far from those of all other places."""
    east = 10 * list(PLACES).index(split) + number
    north = 5 * CLASSES.index(category)
    corners = [(0, 0), (0.002, 0), (0.002, 0.004), (0, 0.004), (0, 0)]
    points = ', '.join(f'{east + x:.6f} {north + y:.6f}' for x, y in corners)
    return f'POLYGON (({points}))'


def write_image(
    path: Path,
    category: str,
    image: int,
    time: str,
    outline: str,
    size: tuple[int, int] = SIZE,
) -> None:
    """Write a JPEG and its metadata; boxes are a list or, every other time, a dict."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:] = GROUND
    x, y, width, height = BOX
    pixels[y : y + height, x : x + width] = colour(category, image)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)
    box = {'ID': 1, 'category': category, 'box': BOX, 'raw_location': outline}
    content = {
        'timestamp': time,
        'img_width': size[0],
        'img_height': size[1],
        'bounding_boxes': box if image % 2 else [box],
    }
    path.with_suffix('.json').write_text(json.dumps(content))


def write_fmow(root: Path, variant: str = 'rgb') -> Path:
    """Write all splits and return the folder."""
    for split, places in PLACES.items():
        for (category, number), times in places.items():
            outline = polygon(split, category, number)
            for image, time in enumerate(times):
                name = f'{category}_{number}_{image}_{variant}.jpg'
                path = root / split / category / f'{category}_{number}' / name
                write_image(path, category, image, time, outline)
    return root


def write_csv(root: Path, split: str = 'train') -> Path:
    """Write SatMAE's CSV file of a split beside it."""
    labels = {'airport': 0, 'barn': 6, 'zoo': 61}
    lines = ['category,image_path,timestamp']
    for (category, number), times in PLACES[split].items():
        for image, time in enumerate(times):
            name = f'{category}_{number}/{category}_{number}_{image}_rgb.jpg'
            lines.append(f'{labels[category]},{split}/{category}/{name},{time}')
    path = root / f'{split}_62classes.csv'
    path.write_text('\n'.join(lines) + '\n')
    return path


if __name__ == '__main__':
    write_csv(write_fmow(Path(sys.argv[1])))
