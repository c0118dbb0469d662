"""Write a folder of images as people have them: most odd, some of them damaged.

`python tests/data/odd_images.py FOLDER`
"""

import io
import os
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from PIL import Image

VRT = """<VRTDataset rasterXSize="40" rasterYSize="40"><VRTRasterBand dataType="Byte"
band="1"><SimpleSource><SourceFilename>{0}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""


class Written(NamedTuple):
    """What is in the folder.

    `fit` images can be read as red, green and blue of 8 bits, `unfit` ones cannot, and
    `passed` are images with suffixes that are not read, by suffix.
    """

    fit: int
    unfit: int
    passed: Counter[str]


def _pixels(number: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(number)
    shape = (36 + number % 9, 40 + number % 5, channels)
    return random.integers(20, 256, shape, dtype=np.uint8)


def _picture(number: int, mode: str = 'RGB') -> Image.Image:
    return Image.fromarray(_pixels(number)).convert(mode)


def _bytes(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _tiff(pixels: np.ndarray, **profile: object) -> bytes:
    """Return the bytes of a GeoTIFF of pixels (H, W, C)."""
    height, width, count = pixels.shape
    sizes = {'height': height, 'width': width, 'count': count}
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver='GTiff', dtype=pixels.dtype.name, **sizes, **profile
        ) as file:
            file.write(pixels.transpose(2, 0, 1))
        return memory.read()


def _turned(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 1 + number % 8
    return _bytes(_picture(number), 'JPEG', exif=exif)


def _several(number: int, format: str) -> bytes:
    picture = _picture(number)
    others = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return _bytes(picture, format, save_all=True, append_images=others)


def _part(content: bytes, number: int) -> bytes:
    return content[: len(content) * (3 + number % 5) // 9]


# (files, suffix, bytes of number n) of each kind.
FIT = {
    'jpeg': (34, '.jpg', lambda n: _bytes(_picture(n), 'JPEG')),
    'progressive': (8, '.jpg', lambda n: _bytes(_picture(n), 'JPEG', progressive=True)),
    'gray jpeg': (8, '.jpeg', lambda n: _bytes(_picture(n, 'L'), 'JPEG')),
    'cmyk': (8, '.jpg', lambda n: _bytes(_picture(n, 'CMYK'), 'JPEG')),
    'turned': (8, '.jpg', _turned),
    'capital': (6, '.JPEG', lambda n: _bytes(_picture(n), 'JPEG')),
    'png': (20, '.png', lambda n: _bytes(_picture(n), 'PNG')),
    'palette': (12, '.png', lambda n: _bytes(_picture(n, 'P'), 'PNG')),
    'one bit': (8, '.png', lambda n: _bytes(_picture(n, '1'), 'PNG')),
    'gray': (12, '.png', lambda n: _bytes(_picture(n, 'L'), 'PNG')),
    'gray alpha': (8, '.png', lambda n: _bytes(_picture(n, 'LA'), 'PNG')),
    'alpha': (12, '.png', lambda n: _bytes(_picture(n, 'RGBA'), 'PNG')),
    'webp': (12, '.webp', lambda n: _bytes(_picture(n), 'WEBP')),
    'alpha webp': (6, '.webp', lambda n: _bytes(_picture(n, 'RGBA'), 'WEBP')),
    'moving': (4, '.webp', lambda n: _several(n, 'WEBP')),
    'jpeg in png': (6, '.png', lambda n: _bytes(_picture(n), 'JPEG')),
    'png in jpeg': (6, '.jpg', lambda n: _bytes(_picture(n), 'PNG')),
    'tiff': (16, '.tif', lambda n: _tiff(_pixels(n), photometric='RGB')),
    'lzw': (6, '.tiff', lambda n: _tiff(_pixels(n), photometric='RGB', compress='lzw')),
    'plain tiff': (6, '.TIF', lambda n: _bytes(_picture(n), 'TIFF')),
    'tiff palette': (8, '.tif', lambda n: _bytes(_picture(n, 'P'), 'TIFF')),
    'pages': (6, '.tif', lambda n: _several(n, 'TIFF')),
    'tiff cmyk': (4, '.tif', lambda n: _bytes(_picture(n, 'CMYK'), 'TIFF')),
}
UNFIT = {
    'deep png': (6, '.png', lambda n: _bytes(_picture(n, 'I;16'), 'PNG')),
    'deep tiff': (6, '.tif', lambda n: _tiff(_pixels(n).astype('uint16') * 30)),
    'floats': (4, '.tif', lambda n: _tiff(_pixels(n) / np.float32(255))),
    'gray tiff': (4, '.tif', lambda n: _tiff(_pixels(n, 1))),
    'white': (4, '.tif', lambda n: _tiff(_pixels(n, 1), photometric='MINISWHITE')),
    'bits': (4, '.tif', lambda n: _bytes(_picture(n, '1'), 'TIFF')),
    'four bands': (6, '.tif', lambda n: _tiff(_pixels(n, 4))),
    'cut jpeg': (10, '.jpg', lambda n: _part(_bytes(_picture(n), 'JPEG'), n)),
    'cut png': (6, '.png', lambda n: _part(_bytes(_picture(n), 'PNG'), n)),
    'cut tiff': (6, '.tif', lambda n: _part(_tiff(_pixels(n), compress='lzw'), n)),
    'empty': (8, '.png', lambda n: b''),
    'text': (6, '.png', lambda n: b'not an image\n' * n),
    'page': (4, '.jpg', lambda n: b'<!DOCTYPE html><title>404</title>'),
    'virtual': (4, '.tif', lambda n: VRT.format('tiff 0.tif').encode()),
    'png in tiff': (4, '.tif', lambda n: _bytes(_picture(n), 'PNG')),
    'noise': (4, '.tif', lambda n: np.random.default_rng(n).bytes(999)),
    'lfs': (2, '.png', lambda n: b'version https://git-lfs.github.com/spec/v1\n'),
}
PASSED = {
    'jpeg 2000': (6, '.jp2', lambda n: _bytes(_picture(n), 'JPEG2000')),
    'bitmap': (4, '.bmp', lambda n: _bytes(_picture(n), 'BMP')),
    'moving gif': (4, '.gif', lambda n: _several(n, 'GIF')),
}
#: Names of good images.
NAMES = (
    ' space .jpg',
    'häuser-東京-🛰.jpg',
    '-rf.jpg',
    'line\nbreak.jpg',
    'quote\'".jpg',
    '%41$HOME{0}.jpg',
    '*.jpg',
    f'{"long" * 60}.jpg',
)


def write_odd_images(root: Path) -> Written:
    """Write the images into one folder, with files beside them that are none."""
    root.mkdir(parents=True)
    counts = []
    for kinds in (FIT, UNFIT, PASSED):
        for name, (count, suffix, content) in kinds.items():
            for number in range(count):
                (root / f'{name} {number}{suffix}').write_bytes(content(number))
        counts.append(Counter[str]())
        for count, suffix, _ in kinds.values():
            counts[-1][suffix] += count
    fit, unfit = sum(counts[0].values()), sum(counts[1].values())
    for number, name in enumerate(NAMES):
        (root / name).write_bytes(_bytes(_picture(number), 'JPEG'))
    below = root / 'below' / 'it'
    below.mkdir(parents=True)
    (below / 'linked.jpg').symlink_to(root / 'jpeg 0.jpg')
    (below / 'loop').symlink_to(root)
    (root / 'to nothing.jpg').symlink_to(root / 'nothing.jpg')
    (root / 'a folder.png').mkdir()
    os.mkfifo(root / 'pipe.png')
    for name in ('.hidden.jpg', 'notes.txt', 'jpeg 0.xml', 'Thumbs.db'):
        (root / name).write_bytes(b'no image')
    (root / '__MACOSX').mkdir()
    (root / '__MACOSX' / '_jpeg 0.jpg').write_bytes(b'no image')
    return Written(fit + len(NAMES) + 1, unfit + 1, counts[2])


if __name__ == '__main__':
    print(write_odd_images(Path(sys.argv[1])))
