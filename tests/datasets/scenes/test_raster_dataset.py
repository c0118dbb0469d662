import math
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from affine import Affine
from pyproj import CRS
from rasterio.windows import Window
from torchgeo.datasets import DatasetNotFoundError
from torchgeo.samplers import GriddedPatchSampler

from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.scenes.listing import Scene, list_scenes
from torchgeo_explora.datasets.scenes.raster_dataset import Header, Scenes

HOME = CRS.from_epsg(32632)


@pytest.fixture
def scenes(fake, tmp_path):
    found, _ = list_scenes(fake('scenes').write_scenes(tmp_path))
    return found


def test_a_torchgeo_data_set(scenes):
    """Indexed by place and time, sampled by TorchGeo's samplers, joined."""
    dataset = Scenes(scenes, HOME)
    assert len(dataset) == 4
    assert dataset.index.index[0].left == pd.Timestamp('2020-01-10')
    sample = dataset[500_000:500_320, 4_999_000:4_999_320]
    assert sample['image'].shape == (3, 32, 32)
    locations = list(GriddedPatchSampler(dataset, size=32))
    assert locations
    assert len(dataset | dataset) == 8


def test_known_scenes_are_not_opened(scenes, monkeypatch):
    """What an index knows makes the same TorchGeo data set."""
    opened = Scenes(scenes, HOME)
    headers = {}
    for scene in scenes:
        handle = opened.handle(scene.path)
        headers[scene.path] = Header(handle.crs, tuple(handle.bounds), handle.res)
    with monkeypatch.context() as patch:
        patch.setattr(rasterio, 'open', lambda *_, **__: pytest.fail('opened'))
        known = Scenes(scenes, HOME, headers=headers)
    assert known.index.equals(opened.index)
    assert known.index.crs == opened.index.crs
    assert (known.res, known.crs, known.bounds) == (
        opened.res,
        opened.crs,
        opened.bounds,
    )
    place = slice(500_000, 500_320), slice(4_999_000, 4_999_320)
    assert torch.equal(known[place]['image'], opened[place]['image'])


def test_scene_of_its_own_system_is_not_warped(scenes):
    dataset = Scenes(scenes[:1])
    handle = dataset.handle(scenes[0].path)
    assert isinstance(handle, rasterio.DatasetReader)
    values = dataset.read_window(scenes[0].path, [2, 1], Window(8, 16, 4, 4), 4)
    assert values.dtype == np.uint16
    # 1000 plus the pixel, whose centre is half a pixel further, rounded to even.
    assert values[1, 0].tolist() == [1008, 1010, 1010, 1012]
    assert values[0, :, 0].tolist() == [1016, 1018, 1018, 1020]


def test_window_is_resampled_bilinearly(scenes):
    dataset = Scenes(scenes[:1])
    values = dataset.read_window(scenes[0].path, [1], Window(0, 0, 64, 64), 16)
    # The middle of four columns: 1000 + 2 + 4 i.
    assert np.abs(values[0, 0] - (1002.0 + 4 * np.arange(16))).max() <= 1


def test_other_system_is_warped_in_place(fake, scenes):
    """A value tells where on the ground a pixel is, to a pixel."""
    far = next(scene for scene in scenes if 'zone33' in scene.path)
    dataset = Scenes([far], HOME)
    handle = dataset.handle(far.path)
    assert isinstance(handle, rasterio.vrt.WarpedVRT)
    size, corner = 32, (60, 70)
    values = dataset.read_window(far.path, [1, 2, 3], Window(*corner, size, size), size)
    rows, columns = np.mgrid[0:size, 0:size]
    x = handle.transform.c + handle.res[0] * (corner[0] + columns + 0.5)
    y = handle.transform.f - handle.res[1] * (corner[1] + rows + 0.5)
    expected = fake('scenes').ground(x, y, 2)
    assert np.abs(values - expected).max() <= 1
    # Bilinear, not nearest: errors are a fraction of a pixel on average.
    assert np.abs(values - expected).mean() < 0.4


def test_what_warping_leaves_empty_is_known(fake, tmp_path):
    """With and without a value for missing data."""
    for nodata in (0, None):
        path = fake('scenes').write_scene(
            tmp_path / f'{nodata}.tif', crs='EPSG:32633', nodata=nodata
        )
        handle = Scenes([Scene('x', str(path))], HOME).handle(str(path))
        valid = handle.read_masks(1) > 0
        # The zones' grids are turned by some degrees: corners are empty.
        corners = valid[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert not corners.any()
        assert 0.8 < valid.mean() < 0.99
        values = handle.read(1)
        assert values[valid].min() > 900
        assert values[~valid].max() == 0


def test_value_of_missing_data_can_be_given(fake, tmp_path):
    path = fake('scenes').write_scene(
        tmp_path / 'a.tif', hole=(0, 16, 0, 160), nodata=None
    )
    given = Scenes([Scene('x', str(path))], nodata=0).handle(str(path))
    assert (given.read_masks(1) > 0).mean() == 0.9
    plain = Scenes([Scene('x', str(path))]).handle(str(path))
    assert plain.read_masks(1).all()


def test_missing_data_becomes_zero(fake, tmp_path):
    path = fake('scenes').write_scene(
        tmp_path / 'a.tif', hole=(0, 8, 0, 160), nodata=-9999, dtype='float32'
    )
    with rasterio.open(path, 'r+') as file:
        pixels = file.read()
        pixels[0, 8, :2] = [np.nan, np.inf]
        file.write(pixels)
    values = Scenes([Scene('x', str(path))]).read_window(
        str(path), [1], Window(0, 0, 16, 16), 16
    )
    assert not values[0, :8].any()
    assert values[0, 8, :3].tolist() == [0, 0, 1002]


def test_place_is_read_from_any_scene(fake, scenes):
    """Two scenes of one place, one of them in the other zone, agree on it."""
    dataset = Scenes(scenes[:1])
    corner = (500_000 + 600, 5_000_000 - 800)
    images = {
        scene.path: dataset.read_place(scene.path, [1, 2, 3], corner, (10, 10), 16)
        for scene in scenes
        if 'd_2021' not in scene.path
    }
    assert len(images) == 3
    for values in images.values():
        assert np.abs(values[0, 0] - (1060.5 + np.arange(16))).max() <= 1
        assert np.abs(values[1, :, 0] - (1080.5 + np.arange(16))).max() <= 1
    assert [int(values[2].mean()) for values in images.values()] == [100, 200, 300]


def test_every_process_has_files_of_its_own(scenes, monkeypatch):
    dataset = Scenes(scenes[:1])
    handle = dataset.handle(scenes[0].path)
    assert dataset.handle(scenes[0].path) is handle
    monkeypatch.setattr(os, 'getpid', lambda: -1)
    assert dataset.handle(scenes[0].path) is not handle
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._handles
    assert copy.handle(scenes[0].path).count == 3


def test_few_files_stay_open(scenes, monkeypatch):
    monkeypatch.setattr('torchgeo_explora.datasets.scenes.raster_dataset._HANDLES', 2)
    dataset = Scenes(scenes, HOME)
    handles = [dataset.handle(scene.path) for scene in scenes[:2]]
    dataset.handle(scenes[0].path)
    dataset.handle(scenes[2].path)
    assert [handle.closed for handle in handles] == [False, True]


@pytest.mark.parametrize('keep', [0, 3000])
def test_damaged_scene_is_named(scenes, keep):
    dataset = Scenes(scenes[:1])
    with open(scenes[0].path, 'rb+') as file:
        file.truncate(keep)
    with pytest.raises(UnreadableImageError, match=r'a_20200110\.tif.*Replace'):
        dataset.read_window(scenes[0].path, [1], Window(96, 96, 32, 32), 32)


def test_scene_without_georeference_is_refused(tmp_path):
    path = tmp_path / 'a.tif'
    profile = {'count': 1, 'height': 8, 'width': 8, 'dtype': 'uint8'}
    with rasterio.open(path, 'w', **profile) as file:
        file.write(np.ones((1, 8, 8), 'uint8'))
    with pytest.raises(ValueError, match='no usable affine'):
        Scenes([Scene('x', str(path))])


def test_no_scene_can_be_opened(tmp_path):
    with pytest.raises(DatasetNotFoundError):
        Scenes([Scene('x', str(tmp_path / 'a.tif'))])


def test_turned_scene_becomes_north_up(tmp_path):
    path = tmp_path / 'a.tif'
    cos, sin = 10 * math.cos(math.pi / 6), 10 * math.sin(math.pi / 6)
    with rasterio.open(
        path,
        'w',
        count=1,
        height=64,
        width=64,
        dtype='uint8',
        crs='EPSG:32632',
        transform=Affine(cos, sin, 500_000, sin, -cos, 5_000_000),
    ) as file:
        file.write(np.full((1, 64, 64), 7, 'uint8'))
    handle = Scenes([Scene('x', str(path))]).handle(str(path))
    assert handle.transform.b == handle.transform.d == 0
    valid = handle.read_masks(1) > 0
    assert 0.4 < valid.mean() < 0.6
    assert (handle.read(1)[valid] == 7).mean() > 0.99
