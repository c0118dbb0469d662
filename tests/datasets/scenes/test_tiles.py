"""Windows side by side over whole scenes."""

import numpy as np
import pytest
import rasterio
import torch

from tests.data.scenes import write_mask, write_scene, write_scenes
from torchgeo_explora.datasets.scenes.tiles import SceneTiles


def test_windows_put_together_are_the_scene(tmp_path):
    path = write_scene(tmp_path / 'a.tif', size=(50, 70), hole=(0, 10, 60, 70))
    tiles = SceneTiles(path, size=32)
    whole = np.zeros((3, 64, 96), np.float32)
    for number in range(len(tiles)):
        left, top, width, height = tiles.windows([number])[1][0]
        image = tiles[number]['image'].numpy()
        assert image.shape == (3, 32, 32)
        whole[:, top : top + 32, left : left + 32] = image
        # Beyond the scene, its last pixels are repeated.
        assert (image[:, height:] == image[:, height - 1 : height]).all()
        assert (image[:, :, width:] == image[:, :, width - 1 : width]).all()
    with rasterio.open(path) as file:
        assert np.array_equal(whole[:, :50, :70], file.read())


def test_share_without_data_is_that_of_the_part_inside(tmp_path):
    path = write_scene(tmp_path / 'a.tif', size=(40, 40), hole=(0, 8, 0, 16))
    tiles = SceneTiles(path, size=32)
    assert float(tiles[0]['no_data']) == pytest.approx(8 * 16 / 32**2)
    assert [float(tiles[i]['no_data']) for i in (1, 2, 3)] == [0, 0, 0]


def test_scenes_are_in_order_and_keep_their_systems(tmp_path):
    tiles = SceneTiles(write_scenes(tmp_path), size=64, bands=['B02', 'B04'])
    found = tiles.footprints(range(len(tiles)))
    assert found.scenes == sorted(found.scenes)
    assert set(found.systems) == {'EPSG:32632', 'EPSG:32633'}
    assert tiles.bands == ('B02', 'B04')
    # The third band tells the number of the scene.
    assert tiles[0]['image'][0].unique().tolist() == [100]


def test_warped_scenes_have_one_system(tmp_path):
    tiles = SceneTiles(write_scenes(tmp_path), size=64, crs='EPSG:32632')
    assert set(tiles.systems) == {'EPSG:32632'}
    assert 0 < float(tiles[len(tiles) - 1]['no_data']) <= 1


def test_not_finite_values_are_no_data(tmp_path):
    path = write_scene(tmp_path / 'a.tif', size=(32, 32), dtype='float32', nodata=None)
    with rasterio.open(path, 'r+') as file:
        values = file.read()
        values[:, :8] = np.nan
        file.write(values)
    tiles = SceneTiles(path, size=32, value_range=(0, 2000))
    assert float(tiles[0]['no_data']) == 0.25
    assert torch.isfinite(tiles[0]['image']).all()


def test_scenes_of_another_type_are_named(tmp_path):
    write_scene(tmp_path / 'a.tif', size=(32, 32))
    write_scene(tmp_path / 'b.tif', size=(32, 32))
    write_scene(tmp_path / 'c.tif', size=(32, 32), dtype='int16')
    with pytest.raises(ValueError, match=r'c\.tif: scenes of another data type'):
        SceneTiles(tmp_path, size=32)
    with pytest.warns(UserWarning, match='they are left out'):
        assert len(SceneTiles(tmp_path, size=32, on_error='skip')) == 2


def test_cloud_masks_are_not_scenes(tmp_path):
    write_mask(write_scene(tmp_path / 'a.tif', size=(32, 32)), (0, 8, 0, 8))
    assert len(SceneTiles(tmp_path, size=32, mask='_cloud.tif')) == 1
