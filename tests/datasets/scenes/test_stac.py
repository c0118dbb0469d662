import json

import numpy as np
import pytest
import rasterio

from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.scenes import band_stack
from torchgeo_explora.datasets.scenes.band_stack import stack_bands
from torchgeo_explora.datasets.scenes.listing import list_scenes
from torchgeo_explora.datasets.scenes.raster_dataset import Scenes
from torchgeo_explora.datasets.scenes.stac import (
    MALFORMED,
    NO_ASSET,
    NO_STACK,
    NOT_STAC,
    stac_scenes,
)

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


def split(items):
    """Write each item to a file of its own, and return their folder."""
    for item in json.loads(items.read_text())['features']:
        for asset in item['assets'].values():
            asset['href'] = f'../{asset["href"]}'
        (items.parent / 'single').mkdir(exist_ok=True)
        (items.parent / f'single/{item["id"]}.json').write_text(json.dumps(item))
    return items.parent / 'single'


def test_patterns_and_folders_of_items(items):
    folder = split(items)
    expected, _ = list_scenes(items, BANDS)
    names = [scene.name for scene in expected]
    assert names == ['item0', 'item1']
    for place in (folder / '*.json', items.parent / '**/item*.json', folder):
        found, problems = list_scenes(place, BANDS)
        assert [scene.name for scene in found] == names
        assert not problems
    with pytest.raises(FileNotFoundError, match='no file matches'):
        list_scenes(folder / 'x*.json', BANDS)
    # Without assets, a folder is one of rasters.
    assert len(list_scenes(items.parent)[0]) == 6


def test_other_json_files_of_a_folder_are_passed_over(items):
    folder = split(items)
    (folder / 'catalog.json').write_text('{"type": "Catalog", "links": []}')
    (folder / 'notes.json').write_text('[not JSON')
    found, problems = list_scenes(folder, BANDS)
    assert len(found) == 2
    assert problems == [
        (str(folder / 'catalog.json'), NOT_STAC),
        (str(folder / 'notes.json'), NOT_STAC),
    ]
    with pytest.raises(ValueError, match=r'notes\.json is not a STAC file'):
        list_scenes(folder / 'notes.json', BANDS)


def tell(items, change):
    """Change what the items tell of their assets."""
    content = json.loads(items.read_text())
    for number, item in enumerate(content['features']):
        for key, asset in item['assets'].items():
            change(number, key, item, asset)
    items.write_text(json.dumps(content))


def read(scene):
    with rasterio.open(scene.path) as file:
        return file.read()


def test_items_that_cannot_be_are_named_and_do_not_stop_the_others(items):
    def change(number, key, item, asset):
        if number == 0 and key == 'B03':
            del asset['href']

    tell(items, change)
    content = json.loads(items.read_text())
    content['features'] += [3, {'id': 'other', 'assets': []}]
    items.write_text(json.dumps(content))
    found, problems = stac_scenes(str(items), BANDS, None)
    assert [scene.name for scene in found] == ['item1']
    names = ['item0', str(items), 'other']
    assert problems == [(name, MALFORMED) for name in names]


@pytest.mark.parametrize('form', ['1.0', '1.1', 'asset'])
def test_sentinel2_before_and_after_baseline_04_00_get_one_scale(items, form):
    """Later values are 1,000 above earlier ones; dark pixels stay valid."""

    def change(number, key, item, asset):
        values = {'scale': 0.0001, 'offset': -0.1 * number}
        names = {f'raster:{name}': value for name, value in values.items()}
        if form == '1.0':
            asset['raster:bands'] = [values]
        elif form == '1.1':
            asset['bands'] = [names]
        else:
            asset |= names

    raw = [read(scene) for scene in stac_scenes(str(items), BANDS, None)[0]]
    tell(items, change)
    before, after = (read(s) for s in stac_scenes(str(items), BANDS, None)[0])
    assert np.array_equal(before, raw[0])
    valid = raw[1] > 0
    assert np.array_equal(after[valid], np.maximum(raw[1][valid].astype(int) - 1000, 1))
    assert (after[~valid] == 0).all()
    # One asset is corrected, too, and stays a plain file where there is nothing to do.
    one = stac_scenes(str(items), ('B04',), None)[0]
    assert one[0].path == str(items.parent / 'item0/B04.tif')
    assert np.array_equal(read(one[1])[0], after[0])


def test_an_offset_that_was_applied_is_not_applied_again(items):
    def change(number, key, item, asset):
        asset['raster:bands'] = [{'scale': 0.0001, 'offset': -0.1 * number}]
        item['properties']['earthsearch:boa_offset_applied'] = True

    raw = [read(scene) for scene in stac_scenes(str(items), BANDS, None)[0]]
    tell(items, change)
    for scene, pixels in zip(stac_scenes(str(items), BANDS, None)[0], raw, strict=True):
        assert np.array_equal(read(scene), pixels)


def test_the_scale_of_most_items_is_that_of_all(items):
    def change(number, key, item, asset):
        asset['raster:bands'] = [{'scale': 0.5 if number else 1.0}]

    content = json.loads(items.read_text())
    content['features'].append(content['features'][0] | {'id': 'item2'})
    items.write_text(json.dumps(content))
    raw = [read(scene) for scene in stac_scenes(str(items), ('B02',), None)[0]]
    tell(items, lambda n, k, i, a: change(n % 2, k, i, a))
    first, second, _ = (read(s) for s in stac_scenes(str(items), ('B02',), None)[0])
    assert np.array_equal(first, raw[0])
    assert np.array_equal(second, np.round(raw[1] / 2))


@pytest.mark.parametrize('code', [{'proj:code': 'EPSG:32632'}, {'proj:epsg': 32632}])
def test_assets_that_tell_their_grid_are_not_opened(items, code, monkeypatch):
    expected = [read(scene) for scene in stac_scenes(str(items), BANDS, None)[0]]

    def change(number, key, item, asset):
        with rasterio.open(items.parent / asset['href']) as file:
            asset['proj:shape'] = file.shape
            asset['proj:transform'] = [*file.transform]
            asset['raster:bands'] = [{'data_type': 'uint16', 'nodata': file.nodata}]
        item['properties'] |= code

    tell(items, change)
    monkeypatch.setattr(band_stack, 'open_raster', lambda path: pytest.fail(path))
    found, problems = stac_scenes(str(items), BANDS, None)
    assert not problems
    for scene, pixels in zip(found, expected, strict=True):
        assert np.array_equal(read(scene), pixels)
        with rasterio.open(scene.path) as file:
            assert file.crs == 'EPSG:32632'


def test_errors_name_the_item(items):
    found, _ = stac_scenes(str(items), BANDS, None)
    path = found[0].path.replace('item="item0"', 'item="a &quot;b&quot;"')
    assert band_stack.item_of(path) == 'a "b"'
    scenes = Scenes([found[0]])
    (items.parent / 'item0/B03.tif').write_bytes(b'')
    with pytest.raises(UnreadableImageError, match='item item0'):
        scenes.read_window(
            found[0].path, (1, 2), rasterio.windows.Window(0, 0, 8, 8), 8
        )
