"""Malformed images."""

import io
import os
import struct
import zlib

import numpy as np
import rasterio
from PIL import Image

from tests.attack.guard import Case, cuts, flips
from tests.attack.weights import contents
from torchgeo_explora.datasets import ImageFolder

#: Kinds of contents that are no image.
NO_IMAGES = ('empty', 'one byte', 'random', 'text', 'HTML', 'a list in JSON')
VRT = """<VRTDataset rasterXSize="40" rasterYSize="40">
<VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""
WMS = """<GDAL_WMS><Service name="TMS"><ServerUrl>{source}</ServerUrl></Service>
<DataWindow><SizeX>40</SizeX><SizeY>40</SizeY></DataWindow><BandsCount>3</BandsCount>
</GDAL_WMS>"""


def encoded(pixels, format, **options):
    """Return the bytes of an image; Pillow's and GDAL's formats."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def tiff(pixels, **profile):
    """Return the bytes of a TIFF of GDAL, of pixels (C, H, W)."""
    count, height, width = pixels.shape
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver='GTiff',
            count=count,
            height=height,
            width=width,
            dtype=pixels.dtype.name,
            **profile,
        ) as file:
            file.write(pixels)
        return memory.read()


def lying_tiff(width=2**31 - 1, height=2**31 - 1, bands=1, compression=1, bits=8):
    """Return a TIFF of a few bytes whose header claims much more."""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, bands),
        (278, 4, 1, height),
        (279, 4, 1, 100),
    ]
    body = struct.pack('<H', len(entries))
    body += b''.join(struct.pack('<HHII', *entry) for entry in entries)
    return b'II*\0' + struct.pack('<I', 8) + body + bytes(104)


def png(width, height, depth=8, colour=2, data=b'', filter=0):
    """Return a PNG with any header."""

    def chunk(name, content):
        sum_ = zlib.crc32(name + content)
        return (
            struct.pack('>I', len(content)) + name + content + struct.pack('>I', sum_)
        )

    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, filter, 0)
    parts = (
        chunk(b'IHDR', header),
        chunk(b'IDAT', zlib.compress(data)),
        chunk(b'IEND', b''),
    )
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def pictures():
    """Yield (name, suffix, bytes, readable) of images; None if they may be."""
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    gray, deep = rgb[..., 0], random.integers(0, 4000, (3, 40, 40), dtype=np.uint16)
    alpha = np.dstack([rgb, gray])
    jpeg, webp = encoded(rgb, 'JPEG'), encoded(rgb, 'WEBP')
    whole = {
        '.jpg': jpeg,
        '.png': encoded(rgb, 'PNG'),
        '.webp': webp,
        '.tif': tiff(rgb.transpose(2, 0, 1)),
        'lzw.tif': tiff(deep, compress='lzw'),
        'deflate.tif': tiff(
            deep, compress='deflate', tiled=True, blockxsize=16, blockysize=16
        ),
        'jpeg.tif': tiff(rgb.transpose(2, 0, 1), compress='jpeg'),
    }
    for suffix, content in whole.items():
        for name, bad in cuts(content, 8):
            yield name, suffix, bad, False
        for name, bad in flips(content, 8, 0, min(64, len(content))):
            # What a bit of a header means may change without being wrong.
            yield f'{name} in the header', suffix, bad, None
    for name, content in contents():
        if name in NO_IMAGES or 'saved' in name or 'header' in name:
            for suffix in ('.png', '.tif'):
                yield name, suffix, content, False
    for suffix in ('.jpg', '.png', '.webp', '.tif'):
        for other, content in whole.items():
            if not other.endswith(suffix):
                # Pillow looks at the contents; a TIFF must be one.
                yield f'contents of {other}', suffix, content, None
    for suffix in ('.tif', '.png', '.jpg'):
        for source in ('canary/canary.txt', '/vsicurl/http://127.0.0.1:{port}/x.tif'):
            yield (
                f'a VRT of {source[:9]}',
                suffix,
                VRT.replace('{source}', source),
                False,
            )
        yield (
            'a WMS',
            suffix,
            WMS.replace('{source}', 'http://127.0.0.1:{port}/'),
            False,
        )
        yield 'an STACIT', suffix, 'STACIT:"/vsicurl/http://127.0.0.1:{port}/"', False
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (2**20, 2**20),
        (0, 0),
        (1, 2**31 - 1),
    ):
        yield (
            f'a header of {width} x {height}',
            '.tif',
            lying_tiff(width, height),
            False,
        )
        yield f'a header of {width} x {height}', '.png', png(width, height), False
    for bands, bits in ((65535, 8), (4000, 8), (1, 64), (3, 7), (1, 0)):
        content = lying_tiff(40, 40, bands, bits=bits)
        yield f'a header of {bands} bands of {bits} bits', '.tif', content, None
    for compression in (0, 7, 34712, 50001, 65000):
        content = lying_tiff(40, 40, 1, compression)
        yield f'a header of compression {compression}', '.tif', content, False
    yield 'a depth of 3 bits', '.png', png(40, 40, 3), False
    yield 'a colour of kind 9', '.png', png(40, 40, 8, 9), False
    yield 'no rows', '.png', png(40, 40), False
    for name, suffix, content in (
        ('CMYK', '.jpg', _saved(Image.fromarray(rgb).convert('CMYK'), 'JPEG')),
        ('gray', '.jpg', encoded(gray, 'JPEG')),
        ('1 bit', '.png', encoded(gray > 99, 'PNG')),
        ('a palette', '.png', _saved(Image.fromarray(rgb).convert('P'), 'PNG')),
        ('16 bits', '.png', encoded(deep[0], 'PNG')),
        ('alpha', '.png', encoded(alpha, 'PNG')),
        ('alpha', '.webp', encoded(alpha, 'WEBP')),
        ('CMYK', '.tif', _saved(Image.fromarray(rgb).convert('CMYK'), 'TIFF')),
        ('1 bit', '.tif', _saved(Image.fromarray(gray).convert('1'), 'TIFF')),
        ('a palette', '.tif', _saved(Image.fromarray(rgb).convert('P'), 'TIFF')),
        ('16 bits', '.tif', tiff(deep)),
        ('min is white', '.tif', tiff(gray[None], photometric='MINISWHITE')),
        ('12 bits', '.tif', tiff(deep[:1], nbits=12)),
        ('signed', '.tif', tiff(deep.astype('int16'))),
        ('64-bit floats', '.tif', tiff(deep.astype('float64'))),
        ('NaN', '.tif', tiff(np.full((3, 40, 40), np.nan, 'float32'))),
        ('infinity', '.tif', tiff(np.full((3, 40, 40), np.inf, 'float32'))),
        ('complex numbers', '.tif', tiff(deep.astype('complex64'))),
        ('64-bit integers', '.tif', tiff(deep.astype('int64'))),
        ('no data', '.tif', tiff(deep, nodata=0)),
        ('a profile of garbage', '.jpg', encoded(rgb, 'JPEG', icc_profile=b'x' * 999)),
        (
            'EXIF of garbage',
            '.jpg',
            encoded(rgb, 'JPEG', exif=b'Exif\0\0II*\0' + b'\xff' * 99),
        ),
        (
            'an animation',
            '.webp',
            _saved(
                Image.fromarray(rgb),
                'WEBP',
                save_all=True,
                append_images=[Image.fromarray(rgb)],
            ),
        ),
    ):
        yield name, suffix, content, True


def _saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def images(_):
    """Yield malformed images: none of them may be silently taken for another."""
    for name, suffix, content, readable in pictures():
        right = (lambda _: False) if readable is False else is_image
        yield Case(
            'images',
            f'{name}{suffix}',
            _image_writer(f'bad{suffix}', content),
            lambda folder: ImageFolder(folder / 'images')[0]['image'],
            right,
            ('images', f'bad{suffix}'),
        )


def _image_writer(name, content):
    def write(folder):
        (folder / 'images').mkdir()
        found = content
        if isinstance(found, str):
            port = os.environ['ATTACK_PORT']
            found = (
                found.replace('{port}', port)
                .replace('canary/', f'{folder}/canary/')
                .encode()
            )
        (folder / 'images' / name).write_bytes(found)

    return write


def is_image(image):
    return image.ndim == 3 and min(image.shape) > 0 and bool(image.isfinite().all())
