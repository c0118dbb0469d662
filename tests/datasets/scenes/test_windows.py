import os
import pickle
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio import warp
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS as RasterCRS
from rasterio.rpc import RPC
from torchgeo.datasets import DatasetNotFoundError

from tests.data.scenes import write_container
from torchgeo_explora.datasets import SceneWindows
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.scenes import index as index_module
from torchgeo_explora.datasets.scenes.band_stack import stack_bands

pytestmark = pytest.mark.filterwarnings('ignore:.*has no geotransform')


@pytest.fixture
def make(fake):
    return fake('scenes')


@pytest.fixture
def root(make, tmp_path):
    return make.write_scenes(tmp_path)


def places(dataset):
    """Return (east, north) in pixels of every window, from its first pixel."""
    return np.array(
        [dataset[i]['image'][:2, 0, 0].tolist() for i in range(len(dataset))]
    )


def test_windows_show_the_pixels_of_their_place(make, root):
    """A pixel's value is where it lies on the ground; so is its neighbour's."""
    dataset = SceneWindows(root, size=32, length=40)
    assert dataset.bands == ('B04', 'B03', 'B02')
    assert dataset.value_range == (0, 10000)
    assert not dataset.range_known
    for sample in dataset:
        image = sample['image']
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.float32
        east = image[0, 0, 31] - image[0, 0, 0]
        north = image[1, 31, 0] - image[1, 0, 0]
        assert abs(east - 31) < 2
        assert abs(north - 31) < 2
        number = 'abcd'.index(sample['path'].rpartition('/')[2][0])
        assert (image[2] == 100 * (number + 1)).all()
    assert sorted({s['path'][-20:-4] for s in dataset}) == sorted(
        path[-20:-4] for path in map(str, root.rglob('*.tif'))
    )


def test_overlapping_scenes_do_not_count_twice(root):
    """Scene d lies apart: a quarter of the scenes, but more of the ground."""
    dataset = SceneWindows(root, size=32, length=2000)
    table = dataset.index.table['name'].to_pylist()
    apart = next(i for i, name in enumerate(table) if 'd_2021' in name)
    share = (dataset.windows[:, 0] == apart).mean()
    # The other three cover 17 + 5 columns of windows, and a little more.
    assert 0.35 < share < 17 / (17 + 22)


def test_windows_are_the_same_at_every_start(root):
    first = SceneWindows(root, size=32, length=20)
    again = SceneWindows(root, size=32, length=20)
    other = SceneWindows(root, size=32, length=20, seed=1)
    assert np.array_equal(first.windows, again.windows)
    assert not np.array_equal(first.windows, other.windows)
    assert torch.equal(first[7]['image'], again[7]['image'])
    assert len(list(root.glob('.scenes_*.arrow'))) == 1


def test_later_starts_open_no_scene(root, monkeypatch):
    first = SceneWindows(root, size=32, length=20, crs='EPSG:32632', res=20)
    monkeypatch.setattr(rasterio, 'open', lambda *_, **__: pytest.fail('opened'))
    again = SceneWindows(root, size=32, length=20, crs='EPSG:32632', res=20)
    assert np.array_equal(first.windows, again.windows)
    (scenes,) = again.scenes.values()
    # The data set has the pixels of the files, the windows twice these.
    assert scenes.res == pytest.approx((10, 10), rel=0.01)


def test_length_covers_the_ground_about_once(root):
    # 4 scenes of 17 x 17 positions, 16 to a window.
    assert len(SceneWindows(root, size=32)) == 4 * 17 * 17 // 16


@pytest.mark.parametrize('max_invalid', [0.0, 0.25])
def test_no_data_beyond_the_share_is_never_drawn(make, tmp_path, max_invalid):
    make.write_scene(tmp_path / 'a.tif', hole=(0, 160, 0, 80))
    dataset = SceneWindows(tmp_path, size=32, length=300, max_invalid=max_invalid)
    shares = [float((s['image'][0] == 0).float().mean()) for s in dataset]
    assert max(shares) == max_invalid


def test_no_data_is_counted_to_the_pixel(make, tmp_path):
    make.write_scene(tmp_path / 'a.tif', crs='EPSG:32633')
    dataset = SceneWindows(
        tmp_path, size=32, length=200, crs='EPSG:32632', max_invalid=0.03
    )
    shares = [float((s['image'][0] == 0).float().mean()) for s in dataset]
    assert 0 < max(shares) <= 0.03


def test_clouds_are_avoided(make, tmp_path):
    scene = make.write_scene(tmp_path / 'a.tif')
    make.write_mask(scene, (0, 160, 0, 96), value=9)
    arguments = {'size': 32, 'length': 200, 'mask': '_cloud.tif'}
    for values in (None, (8, 9)):
        dataset = SceneWindows(
            tmp_path, cloud_values=values, max_invalid=0.25, **arguments
        )
        east = places(dataset)[:, 0] - 1000
        # A window may reach a quarter of its 32 columns into the clouds.
        assert east.min() == 88
        assert len(dataset.index.table) == 1
    dataset = SceneWindows(tmp_path, cloud_values=(3,), **arguments)
    assert places(dataset)[:, 0].min() < 1030


def test_one_system_and_pixel_size_for_all(make, root):
    dataset = SceneWindows(
        root, size=32, length=60, crs='EPSG:32632', res=20, max_invalid=0
    )
    assert len(dataset.scenes) == 1
    for sample in dataset:
        image = sample['image']
        # Twice the ground.
        assert abs(image[0, 0, 31] - image[0, 0, 0] - 62) < 2
        assert abs(image[1, 31, 0] - image[1, 0, 0] - 62) < 2
        # North-up in this system, whatever the scene's.
        assert abs(image[0, 31, 0] - image[0, 0, 0]) < 1.5


def test_scenes_keep_their_system_by_default(root):
    dataset = SceneWindows(root, size=32, length=10)
    assert len(dataset.scenes) == 2
    for scenes in dataset.scenes.values():
        for path in scenes.files:
            assert isinstance(scenes.handle(path), rasterio.DatasetReader)


def test_bands_by_name_in_any_order(make, tmp_path):
    make.write_scene(tmp_path / 'a.tif', scene=0)
    make.write_scene(tmp_path / 'b.tif', (1000, 0), scene=1)
    with rasterio.open(tmp_path / 'b.tif', 'r+') as file:
        pixels = file.read()
        file.write(pixels[::-1])
        file.descriptions = ('B02', 'B03', 'B04')
    dataset = SceneWindows(tmp_path, size=32, length=20, bands=['B02', 1])
    assert dataset.bands == ('B02', 'B04')
    assert {int(s['image'][0, 0, 0]) for s in dataset} == {100, 200}
    assert min(s['image'][1].min() for s in dataset) >= 1000


def test_series_are_of_one_place_and_sorted_by_time(make, root):
    dataset = SceneWindows(root, size=32, length=60, times=3)
    seen = set()
    for sample in dataset:
        image, times = sample['image'], sample['timestamps']
        assert image.shape == (3, 3, 32, 32)
        years = times[:, 0].tolist()
        assert years == sorted(years)
        # All images of a series show the same ground, across the zones too.
        spread = image[:, :2].amax(0) - image[:, :2].amin(0)
        covered = (image > 0).all(0)[:2]
        assert spread[covered].max() <= 2
        numbers = [int(level.max()) // 100 for level in image[:, 2]]
        seen.add(tuple(numbers))
        for number, time in zip(numbers, times.tolist(), strict=True):
            assert (
                time
                == {
                    1: [18, 0, 0],
                    2: [18, 2, 10],
                    3: [17, 4, 0],
                    4: [19, 5, 0],
                }[number]
            )
    # c before a before b; d lies apart.
    assert {(3, 1, 2), (4, 4, 4)} <= seen


def test_series_need_days(make, tmp_path):
    make.write_scene(tmp_path / 'a.tif')
    with pytest.raises(ValueError, match=r'\*times\* is 2 but .*a\.tif has no date'):
        SceneWindows(tmp_path, size=32, times=2)


def test_stac_items(make, tmp_path):
    items = make.write_stac(tmp_path)
    dataset = SceneWindows(items, size=32, length=20, assets=['B04', 'B03', 'B02'])
    assert dataset.bands == ('B04', 'B03', 'B02')
    assert {sample['path'] for sample in dataset} == {'item0', 'item1'}
    for sample in dataset:
        assert abs(sample['image'][0, 0, 31] - sample['image'][0, 0, 0] - 31) < 2
        number = int(sample['path'][-1])
        assert (sample['image'][2] == 100 * (number + 1)).all()
    dataset = SceneWindows(
        items, size=32, length=5, assets=['B04', 'B03', 'B02'], times=2
    )
    assert dataset[0]['timestamps'].shape == (2, 3)


def test_vrt(make, tmp_path):
    tile = make.write_scene(tmp_path / 'tile.tif')
    mosaic = tmp_path / 'mosaic.vrt'
    mosaic.write_text(stack_bands({'tile': str(tile)}))
    dataset = SceneWindows(mosaic, size=32, length=10)
    assert dataset.bands == ('tile_1', 'tile_2', 'tile_3')
    assert {sample['path'] for sample in dataset} == {str(mosaic)}
    assert places(dataset).min() >= 1000


def test_value_range_follows_the_type_or_is_given(make, tmp_path):
    make.write_scene(tmp_path / 'bytes/a.tif', dtype='uint8')
    dataset = SceneWindows(tmp_path / 'bytes', size=32, length=2)
    assert dataset.value_range == (0, 255)
    assert dataset.range_known
    make.write_scene(tmp_path / 'long/a.tif', dtype='int32')
    with pytest.raises(ValueError, match='int32 values, which have no usual range'):
        SceneWindows(tmp_path / 'long', size=32)
    given = ([0, 0, 0], [1, 2, 3])
    dataset = SceneWindows(tmp_path, size=32, length=2, value_range=given)
    assert dataset.value_range == ((0, 0, 0), (1, 2, 3))
    assert dataset.range_known


def test_bytes_stored_in_16_bits_are_warned_of(tmp_path):
    grid = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    for name, value in (('a', 200), ('b', 255)):
        place(tmp_path / f'{name}.tif', 'EPSG:32632', grid, value=value)
    for _ in ('the first start', 'a later start'):
        with pytest.warns(UserWarning, match=r'value_range=\(0, 255\)') as caught:
            SceneWindows(tmp_path, size=16, length=10)
        assert sum('almost black' in str(w.message) for w in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        SceneWindows(tmp_path, size=16, length=10, value_range=(0, 255))


def test_faults_are_counted_and_named(make, root):
    (root / 'x1.tif').write_bytes(b'no raster')
    make.write_scene(root / 'x2.tif', bands=('B04', 'B03'))
    make.write_scene(root / 'x3.tif', dtype='float32')
    with rasterio.open(
        root / 'x4.tif', 'w', count=3, height=64, width=64, dtype='uint16'
    ) as file:
        file.write(np.ones((3, 64, 64), 'uint16'))
    arguments = {'size': 32, 'length': 10}
    with pytest.raises(FileNotFoundError, match=r'8 samples, of which 4 cannot'):
        SceneWindows(root, **arguments)
    with pytest.warns(UserWarning, match='4 cannot be used'):
        dataset = SceneWindows(root, max_missing=0.5, **arguments)
    assert dataset.index.table.num_rows == 4
    report = next(root.glob('.scenes_*.report.csv')).read_text().splitlines()
    assert report[1:] == [
        f'{root}/x1.tif,unreadable scenes',
        f'{root}/x2.tif,scenes without the bands of most others',
        f'{root}/x3.tif,scenes of another data type than most others',
        f'{root}/x4.tif,scenes without georeference',
    ]


def test_most_scenes_decide_what_the_others_must_have(make, root):
    make.write_scene(root / '0.tif', dtype='float32')
    make.write_scene(root / '1.tif', bands=('B04', 'B03'))
    with pytest.warns(UserWarning, match='2 cannot be used'):
        dataset = SceneWindows(root, size=32, length=10, max_missing=0.5)
    assert dataset.index.table.num_rows == 4
    assert dataset.bands == make.BANDS


def place(path, crs, transform, bands=3, value=1000, **profile):
    with rasterio.open(
        path,
        'w',
        count=bands,
        height=64,
        width=64,
        dtype='uint16',
        crs=crs,
        transform=transform,
        **profile,
    ) as file:
        file.write(np.full((bands, 64, 64), value, 'uint16'))


ENGINEERING = (
    'ENGCRS["site",EDATUM["gate"],CS[Cartesian,2],AXIS["east",east],'
    'AXIS["north",north],LENGTHUNIT["metre",1]]'
)


@pytest.mark.parametrize('crs_of_all', [None, 'EPSG:3857'])
@pytest.mark.parametrize(
    ('crs', 'corner', 'pixel', 'fault'),
    [
        # Metres labelled as degrees: all windows came from this scene.
        ('EPSG:4326', (500_000, 5_000_000), 10, 'outside the area'),
        ('EPSG:32632', (3e7, 5e6), 10, 'outside the area'),
        ('LOCAL_CS["site",UNIT["metre",1]]', (0, 0), 10, 'not one of the Earth'),
        ('IAU_2015:30100', (10, 10), 0.1, 'not one of the Earth'),
        ('EPSG:4978', (0, 0), 10, 'not one of the Earth'),
        (ENGINEERING, (0, 0), 10, 'not one of the Earth'),
        # In its system's area by its first corner only.
        ('EPSG:32632', (500_000, 5_000_000), 1e5, 'outside the area'),
        # Plausible places, but thousands of times the ground of all others.
        ('EPSG:4326', (-30, 30), 1.0, '10,000 times larger or smaller'),
        # Degrees labelled as metres.
        ('EPSG:32632', (9, 45), 1e-4, '10,000 times larger or smaller'),
        ('EPSG:32632', (500_000, 5_000_000), np.nan, 'outside the area'),
    ],
)
def test_one_scene_in_a_wrong_place_never_kills_an_index(
    make, root, crs, corner, pixel, fault, crs_of_all
):
    grid = rasterio.transform.from_origin(*corner, pixel, pixel)
    place(root / 'x.tif', crs, grid @ Affine.scale(1.5))
    only_it_is_left_out(root, fault, crs=crs_of_all)


def only_it_is_left_out(root, fault, **arguments):
    # Warped, the scenes of two zones have windows that are hardly usable.
    arguments = {'paths': root, 'size': 16, 'length': 10} | arguments
    with pytest.warns(UserWarning, match='1 cannot be used'):
        dataset = SceneWindows(**arguments, on_error='skip')
    assert dataset.index.table.num_rows == 4
    report = next(root.glob('.scenes_*.report.csv')).read_text()
    assert fault in report
    assert {dataset[i]['path'] for i in range(10)} <= set(map(str, root.rglob('*.tif')))


def control(path, crs, points):
    place(path, None, None)
    with rasterio.open(path, 'r+') as file:
        file.gcps = (
            [GroundControlPoint(row, column, x, y) for row, column, x, y in points],
            RasterCRS.from_user_input(crs),
        )


def test_ground_control_points_tell_the_place(make, root):
    corners = [
        (row, column, 500_000 + 10 * column, 5_000_000 - 10 * row)
        for row in (0, 64)
        for column in (0, 64)
    ]
    control(root / 'x.tif', 'EPSG:32632', corners)
    make.write_scene(root / 'y.tif', size=(64, 64))
    dataset = SceneWindows(root, size=16, length=10)
    rows = {row['name'][-5]: row for row in dataset.index.table.to_pylist()}
    assert len(rows) == 6
    for name in ('crs', 'origin', 'pixel', 'shape', 'windows'):
        assert rows['x'][name] == rows['y'][name]


@pytest.mark.parametrize(
    ('crs', 'points', 'fault'),
    [
        ('EPSG:32632', [(0, 0, 5e5, 5e6)], 'without georeference'),
        ('EPSG:32632', [(i, i, 5e5, 5e6) for i in range(4)], 'without georeference'),
        (
            'EPSG:4326',
            [(0, 0, 5e5, 5e6), (0, 64, 6e5, 5e6), (64, 0, 5e5, 4e6)],
            'outside the area',
        ),
    ],
)
@pytest.mark.parametrize('crs_of_all', [None, 'EPSG:3857'])
def test_wrong_ground_control_points_are_a_fault(root, crs, points, fault, crs_of_all):
    control(root / 'x.tif', crs, points)
    only_it_is_left_out(root, fault, crs=crs_of_all)


def test_rational_polynomials_are_named(root):
    place(root / 'x.tif', None, None)
    one, first, second = np.eye(20)[:3].tolist()
    with rasterio.open(root / 'x.tif', 'r+') as file:
        file.rpcs = RPC(
            height_off=0,
            height_scale=500,
            lat_off=45,
            lat_scale=0.05,
            line_off=32,
            line_scale=32,
            long_off=9,
            long_scale=0.05,
            samp_off=32,
            samp_scale=32,
            line_num_coeff=second,
            line_den_coeff=one,
            samp_num_coeff=first,
            samp_den_coeff=one,
            err_bias=None,
            err_rand=None,
        )
    only_it_is_left_out(root, 'RPCs only: orthorectify')


def test_container_without_a_band_is_a_fault(root):
    """So are STACIT, netCDF and SAFE opened: as names of other rasters."""
    write_container(root / 'x.gpkg')
    only_it_is_left_out(root, 'files without bands', paths=[root, root / 'x.gpkg'])


def test_empty_giant_is_a_fault(root):
    """A few bytes that claim a million rows and columns."""
    side = 1_000_000
    with rasterio.open(
        root / 'x.tif',
        'w',
        driver='GTiff',
        count=3,
        height=side,
        width=side,
        dtype='uint16',
        crs='EPSG:32632',
        transform=rasterio.transform.from_origin(5e5, 5e6, 0.1, 0.1),
        SPARSE_OK=True,
        tiled=True,
        blockxsize=16384,
        blockysize=16384,
    ):
        pass
    only_it_is_left_out(root, 'unreadable scenes')


def test_scene_for_which_memory_is_too_small_is_a_fault(make, root, monkeypatch):
    make.write_scene(root / 'x.tif', size=(320, 320))
    monkeypatch.setattr(index_module, '_memory', lambda: 24 * 20 * 20 + 1)
    only_it_is_left_out(root, 'more memory than there is')


@pytest.mark.parametrize('failure', [MemoryError(), RuntimeError('x'), OSError('x')])
def test_failure_at_one_scene_is_a_fault(make, root, monkeypatch, failure):
    path = make.write_scene(root / 'x.tif')
    look = index_module.visible_shares

    def fail(handle, *arguments):
        if handle.name == str(path):
            raise failure
        return look(handle, *arguments)

    monkeypatch.setattr(index_module, 'visible_shares', fail)
    only_it_is_left_out(root, 'x.tif')


def test_no_scene_weighs_more_at_the_date_line_and_the_poles(tmp_path):
    """Degrees jump by 360 there, and the same ground is wider in them."""
    home = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    place(tmp_path / 'a.tif', 'EPSG:32632', home)
    pole = rasterio.transform.from_origin(-320, 320, 10, 10)
    place(tmp_path / 'b.tif', 'EPSG:3031', pole)
    # 180 degrees east is about 170 km west of the zone's middle, 3 degrees.
    (x,), (y,) = warp.transform('EPSG:4326', 'EPSG:32601', [180], [60])
    line = rasterio.transform.from_origin(x - 320, y + 320, 10, 10)
    place(tmp_path / 'c.tif', 'EPSG:32601', line)
    dataset = SceneWindows(tmp_path, size=16, length=3000)
    counts = np.bincount(dataset.windows[:, 0])
    assert counts.min() > 900


def test_unusable_scenes_stop_or_are_left_out(make, root):
    for name in ('x', 'y', 'z', 'zz', 'zzz'):
        (root / f'{name}.tif').write_bytes(b'no raster')
    with pytest.raises(FileNotFoundError, match=r'9 samples, of which 5 cannot'):
        SceneWindows(root, size=32, length=10)
    with pytest.warns(UserWarning, match='5 cannot be used'):
        dataset = SceneWindows(root, size=32, length=10, on_error='skip')
    assert dataset.index.table.num_rows == 4


def test_file_name_that_is_not_text_is_a_fault(make, root):
    make.write_scene(root / 'x.tif').rename(
        os.fsdecode(os.fsencode(root) + b'/\xff.tif')
    )
    with pytest.warns(UserWarning, match='1 cannot be used'):
        dataset = SceneWindows(root, size=32, length=10, max_missing=0.5)
    assert dataset.index.table.num_rows == 4


def test_scene_with_alpha_is_warped(tmp_path):
    for zone, east in ((32632, 500_000), (32633, 30_000)):
        grid = rasterio.transform.from_origin(east, 5e6, 10, 10)
        place(tmp_path / f'{zone}.tif', f'EPSG:{zone}', grid, 4, photometric='RGB')
    dataset = SceneWindows(
        tmp_path, size=16, length=10, crs='EPSG:32632', bands=[1, 2, 3], max_invalid=0.5
    )
    assert dataset.index.table.num_rows == 2
    assert dataset[0]['image'].shape == (3, 16, 16)


def test_missing_cloud_mask_is_a_fault(make, root):
    arguments = {'size': 32, 'length': 5, 'mask': '_cloud.tif'}
    with pytest.raises(DatasetNotFoundError, match='without a cloud mask that fits'):
        SceneWindows(root, **arguments)
    for scene in list(root.rglob('*.tif')):
        make.write_mask(scene, (0, 8, 0, 8), value=1)
    before = SceneWindows(root, **arguments).index.table['windows'].to_pylist()
    make.write_mask(root / 'a_20200110.tif', (0, 160, 0, 96), value=1)
    after = SceneWindows(root, **arguments).index.table['windows'].to_pylist()
    assert after[0] < before[0]
    assert after[1:] == before[1:]


def test_scene_without_data_is_left_out(make, root):
    make.write_scene(root / 'e.tif', hole=(0, 160, 0, 160))
    make.write_scene(root / 'f.tif', size=(24, 160))
    message = r'2 scenes without a usable window, such as .*e\.tif, are left out'
    with pytest.warns(UserWarning, match=message):
        dataset = SceneWindows(root, size=32, length=10)
    assert dataset.index.table.num_rows == 4


def test_nothing_usable_at_all(make, tmp_path):
    make.write_scene(tmp_path / 'e.tif', hole=(0, 160, 0, 160))
    with pytest.raises(DatasetNotFoundError, match=r'no window of 32 .*usable window'):
        SceneWindows(tmp_path, size=32)


@pytest.mark.filterwarnings('ignore:skipped sample')
def test_unreadable_window_is_named_or_skipped(root):
    strict = SceneWindows(root, size=32, length=30)
    lenient = SceneWindows(root, size=32, length=30, on_error='skip')
    first = int(strict.windows[:, 0].argmin())
    with open(root / 'a_20200110.tif', 'rb+') as file:
        file.truncate(3000)
    with pytest.raises(UnreadableImageError, match=r'a_20200110\.tif'):
        strict[first]
    assert 'a_20200110.tif' not in lenient[first]['path']
    assert first in lenient.skipped


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'max_invalid': 1.0}, r'\*max_invalid\* must be in \[0, 1\)'),
        ({'size': 0}, r'\*size\* must be 1 or more'),
        ({'length': 0}, r'\*length\* must be 1 or more'),
        ({'times': 0}, r'\*times\*'),
        ({'res': 0.0001}, r'\*res\* is 0.0001 units of EPSG:326'),
        ({'bands': ['B05']}, r"band 'B05' is not in the first scene.*B04, B03, B02"),
        ({'value_range': (1, 0)}, r'\*value_range\*'),
    ],
)
def test_wrong_arguments(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        SceneWindows(root, **({'size': 32} | arguments))


def test_a_spawned_worker_reads_the_same(root):
    dataset = SceneWindows(root, size=32, length=10)
    expected = dataset[3]['image']
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]['image'], expected)


def test_plot(root):
    dataset = SceneWindows(root, size=32, length=2, times=2)
    assert len(dataset.plot(dataset[0]).axes) == 2
    dataset = SceneWindows(root, size=32, length=2, bands=[1])
    assert len(dataset.plot(dataset[0], suptitle='x').axes) == 1
    plt.close('all')


def test_no_labels(root):
    assert SceneWindows(root, size=32, length=2)[0].keys() == {
        *('image', 'path', 'index', 'year', 'month', 'hour'),
        *('longitude', 'latitude'),
    }
