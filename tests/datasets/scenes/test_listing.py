import pytest

from torchgeo_explora.datasets.scenes.listing import find_time, list_scenes


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


def names(scenes, root):
    return [str(scene.path).removeprefix(f'{root}/') for scene in scenes]


@pytest.mark.parametrize(
    ('name', 'time'),
    [
        ('S2A_MSIL1C_20200131T102030_N0208.tif', '2020-01-31T10:20:30'),
        ('scene_2020-01-31.tif', '2020-01-31T00:00:00'),
        ('LC08_L1TP_193026_20190505_20190508.tif', '2019-05-05T00:00:00'),
        ('scene_20201331.tif', ''),
        ('tile_1234567890.tif', ''),
        ('a.tif', ''),
    ],
)
def test_time_is_found_in_a_name(name, time):
    assert find_time(name) == time


def test_folder_with_all_below(tmp_path):
    touch(tmp_path, 'b.tif', 'deep/er/a.TIFF', 'c.jp2', 'd.vrt', 'e.txt', '.f.tif')
    scenes, problems = list_scenes(tmp_path)
    assert names(scenes, tmp_path) == ['b.tif', 'c.jp2', 'd.vrt', 'deep/er/a.TIFF']
    assert not problems


def test_patterns_files_and_several_of_them(tmp_path):
    touch(tmp_path, 'x/a.tif', 'x/b.tif', 'y/c.img', 'y/[1].tif')
    scenes, _ = list_scenes(
        [tmp_path / 'x/*.tif', tmp_path / 'y/c.img', tmp_path / 'x']
    )
    assert names(scenes, tmp_path) == ['x/a.tif', 'x/b.tif', 'y/c.img']
    scenes, _ = list_scenes(str(tmp_path / '**' / '*.tif'))
    assert len(scenes) == 3
    assert names(list_scenes(tmp_path / 'y/[1].tif')[0], tmp_path) == ['y/[1].tif']


def test_masks_are_no_scenes(tmp_path):
    touch(tmp_path, 'a.tif', 'a_cloud.tif')
    (scene,), _ = list_scenes(tmp_path, mask='_cloud.tif')
    assert scene.path == str(tmp_path / 'a.tif')
    assert scene.mask == str(tmp_path / 'a_cloud.tif')


@pytest.mark.parametrize('name', ['nothing', 'nothing/*.tif', ''])
def test_nothing_found(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r'no scene found in .*: give a folder'):
        list_scenes(tmp_path / name)


def test_masks_are_only_spoken_of_where_there_are_some(tmp_path):
    """Not every command that lists scenes has the option."""
    (tmp_path / 'items.json').write_text('[]')
    with pytest.raises(FileNotFoundError, match=r'a STAC file needs items$'):
        list_scenes(tmp_path / 'items.json')


def test_paths_that_lead_to_no_scene(tmp_path):
    touch(tmp_path, 'a_cloud.tif')
    (tmp_path / 'items.json').write_text('[]')
    for paths in ([], tmp_path, tmp_path / 'items.json'):
        with pytest.raises(FileNotFoundError, match=r'no scene found in .*\*mask\*'):
            list_scenes(paths, mask='_cloud.tif')
