"""Listing a folder ends, and finds each file once, whatever is in it."""

import glob
import os

import pytest
import rasterio

from torchgeo_explora.datasets import ImageFolder, UnreadableImageError
from torchgeo_explora.datasets.folder.walk import find_files, walk
from torchgeo_explora.datasets.pixels.image_file import ImageFile
from torchgeo_explora.datasets.pixels.picture import open_picture
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.datasets.scenes.listing import list_scenes


@pytest.fixture
def tangled(tmp_path):
    """Folders with links to themselves, to each other and to another place."""
    root, other = tmp_path / 'root', tmp_path / 'other'
    for folder in (root / 'a', root / 'b', other):
        folder.mkdir(parents=True)
    for path in (root / 'a/1.tif', root / 'b/2.tif', other / '3.tif', root / '.4.tif'):
        path.touch()
    (root / 'a/self').symlink_to(root / 'a')
    (root / 'a/up').symlink_to('..')
    (root / 'b/root').symlink_to(root)
    (root / 'linked').symlink_to(other)
    (other / 'back').symlink_to(root)
    (root / 'gone.tif').symlink_to('nowhere')
    os.mkfifo(root / 'pipe.tif')
    (root / 'zero.tif').symlink_to('/dev/zero')
    return root


def test_loops_and_pipes_are_not_followed(tangled):
    names = sorted(walk(str(tangled)))
    assert names == ['a/1.tif', 'b/2.tif', 'gone.tif', 'linked/3.tif']


def test_scenes_are_listed_once(tangled):
    (tangled / 'gone.tif').unlink()
    scenes, _ = list_scenes(tangled)
    assert len(scenes) == 3
    (tangled / 'twice').symlink_to(tangled / 'b')
    (tangled / 'b/4.tif').symlink_to('2.tif')
    for given in (tangled, str(tangled / '**/*.tif'), str(tangled / '**')):
        scenes, _ = list_scenes(given)
        names = sorted(os.path.basename(scene.path) for scene in scenes)
        assert names == ['1.tif', '2.tif', '3.tif']


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [
        ('*.tif', ['a.tif']),
        ('**/*.tif', ['a.tif', 's2/b.tif', 's2/x/c.tif', 's2/x/y/c.tif']),
        ('s2/**/*.tif', ['s2/b.tif', 's2/x/c.tif', 's2/x/y/c.tif']),
        ('s?/**/c.tif', ['s2/x/c.tif', 's2/x/y/c.tif']),
        ('s2/**/y/*', ['s2/x/y/c.tif']),
        ('**/x/**/c.*', ['s2/x/c.tif', 's2/x/y/c.tif']),
        ('s2/**', ['s2/b.tif', 's2/x/c.tif', 's2/x/d.txt', 's2/x/y/c.tif']),
        ('**/[a-b].tif', ['a.tif', 's2/b.tif']),
        ('s9/**/*.tif', []),
    ],
)
@pytest.mark.parametrize('absolute', [False, True])
def test_patterns_mean_what_they_do_elsewhere(
    tmp_path, monkeypatch, pattern, expected, absolute
):
    for name in ('a.tif', 's2/b.tif', 's2/x/c.tif', 's2/x/d.txt', 's2/x/y/c.tif'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 's2/.hidden').touch()
    monkeypatch.chdir(tmp_path)
    if absolute:
        pattern = f'{tmp_path}/{pattern}'
        expected = [f'{tmp_path}/{name}' for name in expected]
    assert sorted(find_files(pattern)) == expected
    known = glob.glob(pattern, recursive=True)
    assert expected == sorted(name for name in known if os.path.isfile(name))


def test_pipe_that_is_named_is_refused(tmp_path):
    path = tmp_path / 'a.png'
    os.mkfifo(path)
    os.mkfifo(tmp_path / 'a.tif')
    with pytest.raises(OSError, match='not a plain file'):
        open_raster(tmp_path / 'a.tif')
    with pytest.raises(UnreadableImageError, match='not a plain file'):
        ImageFile(path)
    with (
        pytest.raises(UnreadableImageError, match='not a plain file'),
        open_picture(str(path)),
    ):
        pass


@pytest.mark.filterwarnings('ignore')
def test_image_that_fills_the_memory_is_refused_before_it_is_read(tmp_path):
    """A file of some kilobytes may claim any size."""
    with rasterio.open(
        tmp_path / 'a.tif',
        'w',
        driver='GTiff',
        width=60_000,
        height=60_000,
        count=1,
        dtype='uint8',
        SPARSE_OK=True,
        tiled=True,
        blockxsize=4096,
        blockysize=4096,
    ):
        pass
    # Codecs make some thousand bytes of one.
    os.truncate(tmp_path / 'a.tif', 2**20)
    with pytest.raises(UnreadableImageError, match='60000 x 60000 pixels, too many'):
        ImageFolder(tmp_path, size=8)[0]
