"""A disk that fills up while embeddings or a map are written."""

import errno
from pathlib import Path

import pytest
import rasterio
from rasterio._err import CPLE_AppDefinedError
from rasterio.errors import RasterioIOError

from tests.data.scenes import write_scene
from torchgeo_explora.callbacks.writers import cog, parquet, raster_writer
from torchgeo_explora.export import embed, map_scenes

pytestmark = pytest.mark.filterwarnings('ignore')
QUIET = {'accelerator': 'cpu', 'enable_progress_bar': False, 'weights': None}
FULL = OSError(errno.ENOSPC, 'No space left on device')


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / 'in' / 's.tif', size=(100, 140))


def fail_at(monkeypatch, place, name, count, error):
    """Let a function leave half a file when it writes for the *count*-th time."""
    calls = []
    real = getattr(place, name)

    def write(*arguments, **options):
        paths = [str(path) for path in arguments if isinstance(path, str | Path)]
        new = [path for path in paths if path.endswith('.part')]
        if new or not paths:
            calls.append(arguments)
            if len(calls) == count:
                for path in new:
                    Path(path).write_bytes(b'half')
                raise error
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, write)


def check(write, target, monkeypatch, *fault):
    """Write with a fault and again; compare with what is written without one."""
    whole = write(target.with_name(f'whole{target.suffix}'))
    target.write_bytes(b'old')
    with monkeypatch.context() as patch:
        fail_at(patch, *fault)
        with pytest.raises(OSError, match=r'^.*could not write .*make room'):
            write(target)
    assert target.read_bytes() == b'old'
    assert not [*target.parent.rglob('*.part')]
    write(target)
    assert not [path for path in target.parent.iterdir() if path.name[0] == '.']
    return whole, target


@pytest.mark.parametrize(
    'fault',
    [
        (parquet.pa, 'OSFile', 3, FULL),
        (parquet.pq.ParquetWriter, 'write_table', 1, FULL),
    ],
    ids=['a part', 'the file'],
)
def test_embeddings(fault, scene, tmp_path, backbone, monkeypatch):
    def write(target):
        options = {'batch_size': 4, 'overwrite': True, **QUIET}
        return embed(scene, target, backbone, **options)

    whole, target = check(write, tmp_path / 'out.parquet', monkeypatch, *fault)
    assert target.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    'fault',
    [
        (raster_writer.np, 'save', 3, FULL),
        # It writes the raster that the map is copied from.
        (raster_writer.rasterio, 'open', 1, RasterioIOError('Write failed.')),
        (cog.rasterio.shutil, 'copy', 1, CPLE_AppDefinedError(3, 1, 'Write error')),
    ],
    ids=['a part', 'the raster', 'the map'],
)
def test_map(fault, scene, tmp_path, backbone, monkeypatch):
    def write(target):
        options = {'block': 64, 'overwrite': True, **QUIET}
        return map_scenes(scene, target, backbone, **options)[0]

    whole, target = check(write, tmp_path / 'out.tif', monkeypatch, *fault)
    with rasterio.open(whole) as one, rasterio.open(target) as other:
        assert one.read().tobytes() == other.read().tobytes()
        assert one.tags() == other.tags()
