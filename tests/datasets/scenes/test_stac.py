import json

import numpy as np
import pytest
import rasterio

from torchgeo_explora.datasets.scenes.band_stack import stack_bands
from torchgeo_explora.datasets.scenes.listing import NO_ASSET, NO_STACK, stac_scenes

BANDS = ('B04', 'B03', 'B02')


@pytest.fixture
def items(fake, tmp_path):
    return fake('scenes').write_stac(tmp_path)


def test_items_become_stacks_of_their_assets(items):
    scenes, problems = stac_scenes(str(items), BANDS, None)
    assert not problems
    assert [scene.name for scene in scenes] == ['item0', 'item1']
    assert [s.time for s in scenes] == ['2020-01-10T10:20:30Z', '2020-03-20T10:20:30Z']
    with rasterio.open(scenes[1].path) as file:
        assert file.descriptions == BANDS
        assert file.dtypes == ('uint16',) * 3
        assert file.nodata == 0
        assert file.shape == (160, 160)
        assert file.crs == 'EPSG:32632'
        pixels = file.read()
    # 1000 plus pixels from the west: item 1 starts 40 pixels further east.
    assert pixels[0, 0, :3].tolist() == [1040, 1042, 1042]
    assert pixels[1, :, 7].max() == 1160
    # The blue band has half of the resolution, and one value everywhere.
    assert np.unique(pixels[2]).tolist() == [200]


def test_bands_follow_the_order_of_the_assets(items):
    scenes, _ = stac_scenes(str(items), ('B02', 'B04'), None)
    with rasterio.open(scenes[0].path) as file:
        assert file.descriptions == ('B02', 'B04')
        assert file.read(1)[0, 0] == 100


def test_one_asset_needs_no_stack(items):
    scenes, _ = stac_scenes(str(items), ('B03',), 'B04')
    assert scenes[0].path == str(items.parent / 'item0/B03.tif')
    assert scenes[0].mask == str(items.parent / 'item0/B04.tif')


@pytest.mark.parametrize('form', ['item', 'list', 'paths'])
def test_other_forms_of_lists(items, form):
    features = json.loads(items.read_text())['features']
    if form == 'paths':
        (items.parent / 'one.json').write_text(json.dumps(features[0]))
    content = {'item': features[0], 'list': features[:1], 'paths': ['one.json']}[form]
    items.write_text(json.dumps(content))
    assert [s.name for s in stac_scenes(str(items), BANDS, None)[0]] == ['item0']


def test_other_files_are_refused(items):
    items.write_text('{"type": "Catalog"}')
    with pytest.raises(ValueError, match='not a STAC item, an item collection'):
        stac_scenes(str(items), BANDS, None)


def test_assets_must_be_chosen(items):
    with pytest.raises(ValueError, match=r'\*assets\* .* item0 .* has B04, B03, B02'):
        stac_scenes(str(items), (), None)


def test_items_that_lack_an_asset_are_listed(items):
    (items.parent / 'item1/B03.tif').unlink()
    scenes, problems = stac_scenes(str(items), BANDS, None)
    assert len(scenes) == 1
    assert problems == [('item1', NO_STACK)]
    scenes, problems = stac_scenes(str(items), ('B04', 'B08'), None)
    assert not scenes
    assert problems == [('item0', NO_ASSET), ('item1', NO_ASSET)]


@pytest.mark.parametrize(
    ('href', 'path'),
    [
        ('s3://bucket/a.tif', '/vsis3/bucket/a.tif'),
        ('https://host/a.tif', 'https://host/a.tif'),
        ('file:///data/a.tif', '/data/a.tif'),
        ('/data/a.tif', '/data/a.tif'),
    ],
)
def test_links(tmp_path, href, path):
    item = {'type': 'Feature', 'id': 'x', 'assets': {'B04': {'href': href}}}
    (tmp_path / 'item.json').write_text(json.dumps(item))
    (scene,), _ = stac_scenes(str(tmp_path / 'item.json'), ['B04'], None)
    assert scene.path == path
    assert scene.time == ''


def test_files_in_two_systems_do_not_stack(fake, tmp_path):
    write = fake('scenes').write_scene
    files = {
        'a': str(write(tmp_path / 'a.tif')),
        'b': str(write(tmp_path / 'b.tif', crs='EPSG:32633')),
    }
    with pytest.raises(ValueError, match=r'a, b are in EPSG:32632, EPSG:32633'):
        stack_bands(files)


def test_bands_of_files_with_several_are_numbered(fake, tmp_path):
    write = fake('scenes').write_scene
    path = write(tmp_path / 'a.tif', bands=('x', 'y'))
    with rasterio.open(stack_bands({'a': str(path)})) as file:
        assert file.descriptions == ('a_1', 'a_2')
