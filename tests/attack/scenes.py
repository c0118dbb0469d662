"""Malformed scenes, indices of scenes, and STAC items."""

import json
import os
import shutil

import numpy as np
import rasterio

from tests.attack.guard import Case, cuts, flips, some
from tests.attack.images import NO_IMAGES, is_image, pictures, tiff
from tests.attack.prepared import JSON_VALUES
from tests.attack.weights import contents
from torchgeo_explora.datasets import SceneWindows


def scenes(whole):
    """Yield malformed scenes, and indices of scenes."""
    path = whole / 'scenes/scene_20200131.tif'
    content = path.read_bytes()
    with rasterio.open(path) as file:
        pixels, profile = file.read(), file.profile
    place = {key: profile[key] for key in ('crs', 'transform', 'nodata')}
    kinds = {
        'no coordinate system': (pixels, {'nodata': 0}),
        'a local system': (pixels, place | {'crs': 'LOCAL_CS["x",UNIT["m",1]]'}),
        'degrees': (pixels, place | {'crs': 'EPSG:4326'}),
        'a system elsewhere': (pixels, place | {'crs': 'EPSG:2193'}),
        'one pixel': (pixels[:, :1, :1], place),
        'no data at all': (pixels * 0, place),
        'complex numbers': (pixels.astype('complex64'), place),
        'floats of NaN': (np.full(pixels.shape, np.nan, 'float32'), place),
        'a grid of NaN': (
            pixels,
            place | {'transform': rasterio.Affine(float('nan'), 0, 0, 0, 1, 0)},
        ),
        'pixels of no size': (
            pixels,
            place | {'transform': rasterio.Affine(0, 0, 0, 0, 0, 0)},
        ),
        'pixels of 1e300 m': (
            pixels,
            place | {'transform': rasterio.Affine(1e300, 0, 0, 0, -1e300, 0)},
        ),
        'a rotated grid': (
            pixels,
            place | {'transform': rasterio.Affine(7, 7, 500000, 7, -7, 5000000)},
        ),
    }
    for name, (values, options) in kinds.items():
        yield _scene_case(
            whole, name, 'bad.tif', lambda v=values, o=options: tiff(v, **o)
        )
    for name, bad in (*cuts(content, 12), *flips(content, 24, 0, 400)):
        yield _scene_case(whole, name, 'bad.tif', bad)
    for name, bad in contents():
        if name in NO_IMAGES or 'header' in name:
            yield _scene_case(whole, name, 'bad.tif', bad)
    for name, suffix, bad, _ in pictures():
        kinds = ('VRT', 'WMS', 'header of', 'STACIT')
        if suffix == '.tif' and any(kind in name for kind in kinds):
            yield _scene_case(whole, name, 'bad.tif', bad)
    index = next(p for p in (whole / 'scenes').iterdir() if p.suffix == '.arrow')
    found = index.read_bytes()
    for name, bad in (*cuts(found, 8), *flips(found, 24)):
        yield _scene_case(whole, f'index {name}', index.name, bad)


def _scene_case(whole, name, file, content):
    def write(folder):
        if file == 'bad.tif':
            (folder / 'scenes').mkdir()
        else:
            shutil.copytree(whole / 'scenes', folder / 'scenes')
        found = content() if callable(content) else content
        if isinstance(found, str):
            port = os.environ['ATTACK_PORT']
            found = (
                found.replace('{port}', port)
                .replace('canary/', f'{folder}/canary/')
                .encode()
            )
        (folder / 'scenes' / file).write_bytes(found)

    def read(folder):
        dataset = SceneWindows(folder / 'scenes', size=32, length=4)
        return [dataset[i]['image'] for i in range(4)]

    def right(found):
        return all(is_image(image) and image.shape[1:] == (32, 32) for image in found)

    return Case('scenes and indices', name, write, read, right, ('scenes', 'bad.tif'))


def items(whole):
    """Yield malformed STAC items."""
    path = next(p for p in (whole / 'stac').rglob('*.json'))
    document = json.loads(path.read_text())
    item = document['features'][0]
    asset = item['assets']['B04']
    values = (
        *JSON_VALUES,
        'http://127.0.0.1:{port}/x.tif',
        'https://x.invalid/\x1b[2J.json',
    )
    hrefs = (
        'canary/canary.txt',
        '/etc/passwd',
        'x.vrt',
        'file:///etc/passwd',
        's3://',
        '::',
        '/vsizip/x.zip/a.tif',
        '/vsicurl/http://127.0.0.1:{port}/x.tif',
        'NETCDF:x.nc',
        'item0/B04.tif?x=1',
        'item0',
        '',
        'x' * 10_000 + '.tif',
        '\x1b[2J.tif',
    )
    places = [(document, key) for key in document] + [(item, key) for key in item]
    places += [(item['properties'], key) for key in item['properties']]
    places += [(item['assets'], 'B04')] + [(asset, key) for key in asset]
    for number, (owner, key) in enumerate(places):
        old = owner[key]
        for value in (*some(values, number, 5), *(hrefs if key == 'href' else ())):
            owner[key] = value
            name = f'{key} is {str(value)[:20]!r}'
            # The address of an asset is fetched, as it should be.
            watched = key != 'href' or '{port}' not in str(value)
            text = json.dumps(document)
            yield _item_case(whole, name, path.name, text, watched)
        del owner[key]
        yield _item_case(whole, f'no {key}', path.name, json.dumps(document))
        owner[key] = old
    for name, content in contents():
        yield _item_case(whole, name, path.name, content)
    for name, content in cuts(path.read_bytes(), 8):
        yield _item_case(whole, name, path.name, content)


def _item_case(whole, name, file, content, watched=True):
    def write(folder):
        # Nobody answers at the port: a second of waiting shows it as well as ten.
        os.environ['GDAL_HTTP_LOW_SPEED_TIME'] = '1'
        shutil.copytree(whole / 'stac', folder / 'stac')
        found = content
        if isinstance(found, str):
            found = found.replace('{port}', os.environ['ATTACK_PORT']).encode()
        (folder / 'stac' / file).write_bytes(found)

    def read(folder):
        data = SceneWindows(
            folder / 'stac' / file,
            32,
            4,
            assets=('B04', 'B03'),
            max_missing=0.9,
            index_dir=folder,
        )
        return [data[i]['image'] for i in range(4)]

    def right(found):
        return all(is_image(image) and image.shape == (2, 32, 32) for image in found)

    return Case('STAC items', name, write, read, right, (file, 'item'), watched)
