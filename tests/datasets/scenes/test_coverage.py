import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

from torchgeo_explora.datasets.scenes.coverage import positions, visible_shares


def naive(shares, cells, max_invalid):
    """Look at every window."""
    rows, columns = (max(side - cells + 1, 0) for side in shares.shape)
    found = np.zeros((rows, columns), bool)
    for row in range(rows):
        for column in range(columns):
            window = shares[row : row + cells, column : column + cells]
            found[row, column] = round((1 - window).mean(), 9) <= max_invalid
    return found


@pytest.mark.parametrize('cells', [1, 3, 8])
@pytest.mark.parametrize('max_invalid', [0.0, 0.25, 0.5])
def test_positions_are_those_of_a_look_at_every_window(cells, max_invalid):
    generator = np.random.default_rng(0)
    shares = generator.integers(0, 65, (20, 31)) / 64
    shares[generator.random((20, 31)) < 0.7] = 1
    expected = naive(shares, cells, max_invalid)
    assert np.array_equal(positions(shares, cells, max_invalid), expected)


def test_share_on_the_edge_is_allowed():
    shares = np.ones((10, 10))
    shares[0] = 0
    # A tenth of the only window, a number that floats do not hold exactly.
    assert positions(shares, 10, 0.1).all()
    assert not positions(shares, 10, 0.0999).any()


def test_scene_smaller_than_a_window_has_no_position():
    assert positions(np.ones((5, 9)), 6, 0.5).sum() == 0


@pytest.fixture
def scene(fake, tmp_path):
    def write(**arguments):
        return fake('scenes').write_scene(tmp_path / 'a.tif', **arguments)

    return write


def shares_of(path, *arguments, **options):
    with rasterio.open(path) as file:
        return visible_shares(file, 1, *arguments, **options)


def test_missing_data_counts_pixel_by_pixel(scene):
    shares = shares_of(scene(hole=(0, 2, 0, 9)), 8)
    assert shares.shape == (20, 20)
    assert shares[0, :3].tolist() == [1 - 16 / 64, 1 - 2 / 64, 1]
    assert (shares[1:] == 1).all()


@pytest.mark.parametrize('rows', [1, 3, 64])
def test_scene_is_read_in_strips(scene, monkeypatch, rows):
    path = scene(hole=(9, 71, 13, 160))
    whole = shares_of(path, 8)
    monkeypatch.setattr('torchgeo_explora.datasets.scenes.coverage._ROWS', rows)
    assert np.array_equal(shares_of(path, 8), whole)


def test_only_whole_cells_count(scene):
    path = scene(size=(63, 64))
    assert shares_of(path, 8).shape == (7, 8)
    assert shares_of(path, 8, 2.0).shape == (3, 4)
    assert shares_of(path, 100).size == 0


def test_cells_of_coarser_pixels(scene):
    """Pixels of a window twice as large: 40 rows are 2.5 cells of 8 pixels."""
    shares = shares_of(scene(hole=(0, 40, 0, 160)), 8, 2.0)
    assert shares[:, 0].tolist() == [0, 0, 0.5, *[1] * 7]


def test_overviews_are_used_where_they_fit(scene):
    """An overview that is made to differ tells who was asked."""
    path = scene(hole=(0, 80, 0, 160))
    with rasterio.open(path, 'r+') as file:
        file.build_overviews([4], Resampling.nearest)
    with rasterio.open(path, 'r+') as file:
        file.write(np.full((3, 160, 160), 1, 'uint16'))
    assert shares_of(path, 8)[:10].max() == 0
    # Four pixels of the overview are no part of six.
    assert shares_of(path, 6).min() == 1


def test_nan_is_no_data(scene):
    path = scene(dtype='float32', nodata=None)
    with rasterio.open(path, 'r+') as file:
        pixels = file.read()
        pixels[:, :, 84:] = np.nan
        file.write(pixels)
    assert shares_of(path, 8)[5].tolist() == [*[1] * 10, 0.5, *[0] * 9]


def test_clouds_at_another_resolution(fake, scene):
    path = scene(hole=(0, 36, 0, 160))
    mask = fake('scenes').write_mask(path, (32, 64, 0, 16), value=9)
    expected = np.ones((20, 20))
    expected[:4] = 0
    expected[4] = 0.5
    assert np.array_equal(
        shares_of(path, 8, mask=str(mask), cloud_values=[3]), expected
    )
    expected[4:8, :2] = 0
    for values in (None, [8, 9]):
        found = shares_of(path, 8, mask=str(mask), cloud_values=values)
        assert np.array_equal(found, expected)
