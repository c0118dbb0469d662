import numpy as np
import pyarrow as pa
import pytest
from pyproj import CRS, Transformer

from torchgeo_explora.datasets.scenes.draw import draw_windows, fair_length
from torchgeo_explora.datasets.scenes.ground import Ground
from torchgeo_explora.datasets.scenes.owners import add_owners

SIZE, STEP = 32, 8


def scene(left, usable, crs=32632, pixel=10):
    """A row of an index: a scene *left* pixels from the west, and what is usable."""
    usable = np.asarray(usable, bool)
    return {
        'crs': CRS.from_epsg(crs).to_string(),
        'origin': [500_000.0 + pixel * left, 5_000_000.0],
        'pixel': [float(pixel)] * 2,
        'shape': list(usable.shape),
        'windows': int(usable.sum()),
        'usable': np.packbits(usable).tobytes(),
    }


def ground(*scenes):
    schema = pa.schema(
        {
            'crs': pa.string(),
            'origin': pa.list_(pa.float64(), 2),
            'pixel': pa.list_(pa.float64(), 2),
            'shape': pa.list_(pa.int32(), 2),
            'windows': pa.int64(),
            'usable': pa.large_binary(),
        }
    )
    table = pa.Table.from_pylist(list(scenes), schema)
    return Ground(add_owners(table, SIZE, STEP), SIZE, STEP)


def test_only_usable_windows_are_drawn():
    usable = np.zeros((9, 13), bool)
    usable[2, 3] = usable[8, 12] = True
    windows = draw_windows(ground(scene(0, usable)), 50, 0)
    assert windows.shape == (50, 3)
    assert {tuple(row) for row in windows.tolist()} == {(0, 2, 3), (0, 8, 12)}


def test_windows_depend_on_the_seed_alone():
    scenes = ground(scene(0, np.ones((9, 9))), scene(20, np.ones((9, 9))))
    first = draw_windows(scenes, 100, 3)
    assert np.array_equal(first, draw_windows(scenes, 100, 3))
    assert not np.array_equal(first, draw_windows(scenes, 100, 4))


def test_every_place_is_as_likely_however_many_scenes_show_it():
    """Ten scenes of one place and one scene of another of the same size."""
    here = [scene(0, np.ones((10, 10))) for _ in range(10)]
    windows = draw_windows(ground(*here, scene(5000, np.ones((10, 10)))), 4000, 0)
    counts = np.bincount(windows[:, 0], minlength=11)
    assert abs(counts[10] - 2000) < 150
    assert abs(counts[:10] - 200).max() < 60


def test_partly_overlapping_scenes_share_their_overlap():
    """Two scenes of 20 columns, 10 of them in common: 30 columns, all alike."""
    scenes = ground(scene(0, np.ones((4, 20))), scene(80, np.ones((4, 20))))
    windows = draw_windows(scenes, 12_000, 0)
    columns = windows[:, 2] + 10 * windows[:, 0]
    counts = np.bincount(columns, minlength=30)
    assert abs(counts - 400).max() < 90


def test_every_window_has_its_exact_probability():
    """One over the places that can be seen, over the scenes that show its place."""
    usable = np.random.default_rng(0).random((5, 12, 12)) < 0.4
    usable[4] = usable[3]
    windows = draw_windows(ground(*(scene(0, bits) for bits in usable)), 60_000, 0)
    counts = np.zeros(usable.shape)
    np.add.at(counts, tuple(windows.T), 1)
    seen = usable.sum(0)
    expected = 60_000 * usable / np.maximum(seen, 1) / (seen > 0).sum()
    assert not counts[~usable].any()
    error = (counts - expected)[usable] / np.sqrt(expected[usable])
    # Chi squared: its mean is the number of windows, its deviation sqrt(2 / number).
    assert abs((error**2).mean() - 1) < 5 * np.sqrt(2 / usable.sum())


def test_a_deep_stack_costs_no_more_than_one_scene(monkeypatch):
    """400 scenes of one place, and one of another: places are looked up few times."""
    looked_up = []
    position = Ground.position

    def counting(self, scenes, longitudes, latitudes):
        looked_up.append(np.size(longitudes))
        return position(self, scenes, longitudes, latitudes)

    stack = [scene(0, np.ones((10, 10)))] * 400
    places = ground(*stack, scene(5000, np.ones((10, 10))))
    monkeypatch.setattr(Ground, 'position', counting)
    windows = draw_windows(places, 2000, 0)
    assert windows.shape == (2000, 3)
    assert sum(looked_up) <= 2 * 2000
    assert abs((windows[:, 0] == 400).sum() - 1000) < 110
    assert len(set(windows[:, 0])) > 350


def test_fine_pixels_do_not_make_a_place_more_likely():
    """As much ground, once in pixels of 10 m, once of 20 m."""
    scenes = ground(
        scene(0, np.ones((20, 20))), scene(5000, np.ones((10, 10)), pixel=20)
    )
    counts = np.bincount(draw_windows(scenes, 4000, 0)[:, 0])
    assert abs(counts[0] - 2000) < 150


def test_scenes_of_two_zones_share_their_overlap():
    """The second one covers half of the first, and as much beside it."""
    east, north = Transformer.from_crs(32632, 32633).transform(501_600, 5_000_000)
    other = scene(0, np.ones((40, 40)), 32633) | {'origin': [east, north]}
    places = ground(scene(0, np.ones((40, 40))), other)
    first, second = places.table['places'].to_pylist()
    assert first == 1600
    # The zones' grids are turned by 4 degrees against each other.
    assert abs(second - 800) < 120
    windows = draw_windows(places, 9600, 0)
    counts = np.bincount(windows[:, 0])
    # All of what only one shows, half of what both do.
    unit = 9600 / (1600 + second)
    assert abs(counts[0] - unit * (1600 - second) - unit * second / 2) < 500


def test_a_scene_that_is_hidden_somewhere_does_not_count_there():
    """The second scene can be used in its upper half only."""
    usable = np.ones((10, 10), bool)
    usable[5:] = False
    scenes = ground(scene(0, np.ones((10, 10))), scene(0, usable))
    windows = draw_windows(scenes, 10_000, 0)
    rows = np.bincount(windows[:, 1], minlength=10)
    assert abs(rows - 1000).max() < 150


def test_larger_scenes_are_drawn_more_often():
    scenes = ground(scene(0, np.ones((10, 10))), scene(5000, np.ones((30, 10))))
    counts = np.bincount(draw_windows(scenes, 4000, 0)[:, 0])
    assert abs(counts[0] - 1000) < 120


def test_fair_length_is_the_number_of_windows_side_by_side():
    # 36 positions 8 pixels apart are as many as 2.25 windows of 32 x 32.
    assert fair_length(ground(scene(0, np.ones((6, 6))))) == 2
    assert fair_length(ground(scene(0, np.ones((1, 1))))) == 1


def test_place_and_position_are_inverse():
    scenes = ground(scene(0, np.ones((9, 13))), scene(7, np.ones((9, 13)), 32633))
    rows, columns = (part.ravel() for part in np.mgrid[0:9, 0:13])
    for number in (0, 1):
        place = scenes.centres(number, rows, columns)
        found = scenes.position(number, *place)
        assert np.array_equal(found[0], rows)
        assert np.array_equal(found[1], columns)
        assert found[2].all()


def test_centre_of_a_window():
    """UTM 32 has its middle, 9 degrees east, at 500 km."""
    scenes = ground(scene(-16, np.ones((1, 1))))
    longitude, latitude = scenes.centres(0, [0], [0])
    assert longitude == pytest.approx([9.0], abs=1e-9)
    assert latitude == pytest.approx([45.15], abs=0.01)


def test_places_outside_are_not_usable():
    scenes = ground(scene(0, np.ones((3, 3))))
    longitudes, latitudes = scenes.centres(0, [-1, 0, 3, 2], [0, -2, 0, 2])
    assert scenes.position(0, longitudes, latitudes)[2].tolist() == [0, 0, 0, 1]
    places, found = scenes.scenes_at(longitudes, latitudes)
    assert (places.tolist(), found.tolist()) == ([3], [0])
