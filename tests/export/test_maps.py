"""Maps of scenes as cloud-optimised GeoTIFFs."""

import warnings

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from tests.data.scenes import write_scene, write_scenes
from tests.tasks.small_runs import VIT
from torchgeo_explora.adapt import base_fingerprint
from torchgeo_explora.callbacks.writers.cog import write_cog
from torchgeo_explora.callbacks.writers.principal import principal_components
from torchgeo_explora.datamodules import RasterSceneDataModule
from torchgeo_explora.export import map_scenes
from torchgeo_explora.tasks import ExploraSegmentationTask
from torchgeo_explora.tasks.downstream.base import DownstreamTask

pytestmark = pytest.mark.filterwarnings('ignore')
QUIET = {'accelerator': 'cpu', 'enable_progress_bar': False, 'block': 64}


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / 's.tif', size=(100, 140), hole=(0, 64, 0, 40))


def run(source, output, backbone, **options):
    return map_scenes(source, output, backbone, None, **QUIET, **options)


def test_embeddings_have_the_grid_of_the_scene_and_name_the_model(
    scene, tmp_path, backbone
):
    target = tmp_path / 'out.tif'
    assert run(scene, target, backbone) == [target]
    with rasterio.open(scene) as file:
        transform, crs = file.transform, file.crs
    with rasterio.open(target) as file:
        assert (file.count, file.shape) == (24, (13, 18))
        assert file.transform == transform @ rasterio.Affine.scale(8)
        assert file.crs == crs
        assert np.isnan(file.nodata)
        values = file.read()
        assert file.tags()['EXPLORA_FINGERPRINT'] == base_fingerprint(backbone)
        assert file.tags()['EXPLORA_MODEL'] == 'vit_tiny_patch16_224'
    empty = np.zeros((13, 18), bool)
    empty[:8, :5] = True
    assert (np.isnan(values) == empty).all()


def test_no_data_that_a_scene_does_not_declare(tmp_path, backbone):
    scene = write_scene(tmp_path / 's.tif', size=(32, 32))
    with rasterio.open(scene, 'r+') as file:
        file.nodata = None
        values = file.read()
        values[:, :8, :16] = 7
        file.write(values)
    run(scene, tmp_path / 'out.tif', backbone, nodata=7)
    with rasterio.open(tmp_path / 'out.tif') as file:
        empty = np.isnan(file.read()).all(0)
    expected = np.zeros((4, 4), bool)
    expected[0, :2] = True
    assert (empty == expected).all()


def test_components_are_those_of_the_whole_scene(scene, tmp_path, backbone):
    run(scene, tmp_path / 'whole.tif', backbone)
    run(scene, tmp_path / 'few.tif', backbone, components=3)
    with rasterio.open(tmp_path / 'whole.tif') as file:
        values = file.read().reshape(24, -1)
    with rasterio.open(tmp_path / 'few.tif') as file:
        found = file.read().reshape(3, -1)
        shares = [float(s) for s in file.tags()['EXPLORA_SHARE_OF_VARIANCE'].split()]
    known = np.isfinite(values).all(0)
    assert np.array_equal(np.isfinite(found).all(0), known)
    cells = values[:, known] - values[:, known].mean(1, keepdims=True)
    left, sizes, _ = np.linalg.svd(cells.astype(np.float64), full_matrices=False)
    for number in range(3):
        expected = left[:, number] @ cells
        same = np.abs(expected - found[number, known]).max()
        turned = np.abs(expected + found[number, known]).max()
        assert min(same, turned) < 1e-3
    assert np.allclose(shares, (sizes**2 / (sizes**2).sum())[:3], atol=1e-4)


def test_components_of_blocks_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(size=(6, 8, 9)).astype(np.float32)
    values[:, :2, :3] = np.nan
    whole = principal_components([values], 4)
    parts = principal_components([values[:, :3], values[:, 3:]], 4)
    assert np.allclose(whole.axes, parts.axes)
    assert (whole.axes[np.arange(4), np.abs(whole.axes).argmax(1)] > 0).all()
    pytest.importorskip('sklearn')
    from sklearn.decomposition import PCA

    cells = values.reshape(6, -1).T
    model = PCA(4).fit(cells[np.isfinite(cells).all(1)])
    assert np.allclose(np.abs(model.components_), np.abs(whole.axes), atol=1e-5)
    assert np.allclose(model.explained_variance_ratio_, whole.shares, atol=1e-5)


def test_killed_and_resumed_over_several_scenes(tmp_path, backbone, monkeypatch):
    root = write_scenes(tmp_path / 'scenes')
    whole = run(root, tmp_path / 'whole', backbone)
    mapped = []
    real = DownstreamTask.map_block

    def cut(self, batch):
        if len(mapped) == 12:
            raise RuntimeError('power cut')
        mapped.append(int(batch['block']))
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DownstreamTask, 'map_block', cut)
        with pytest.raises(RuntimeError, match='power cut'):
            run(root, tmp_path / 'out', backbone)
    # Nine blocks of the first scene, three of the second.
    first = tmp_path / 'out' / whole[0].name
    assert [path.name for path in first.parent.glob('*.tif')] == [first.name]
    before = first.stat().st_mtime_ns
    again = run(root, tmp_path / 'out', backbone)
    assert first.stat().st_mtime_ns == before
    for old, new in zip(whole, again, strict=True):
        with rasterio.open(old) as one, rasterio.open(new) as other:
            assert np.array_equal(one.read(), other.read(), equal_nan=True)


def test_cloud_optimised(tmp_path):
    """With overviews, whose values without data count for nothing."""
    validate = pytest.importorskip('rio_cogeo.cogeo').cog_validate
    values = np.ones((40, 300, 200), np.float32)
    values[:, :, 100:] = np.nan
    profile = {'count': 40, 'height': 300, 'width': 200, 'nodata': np.nan}
    place = rasterio.transform.from_origin(5e5, 5e6, 10, 10)
    with rasterio.open(
        tmp_path / 'a.tif',
        'w',
        dtype='float32',
        crs='EPSG:32632',
        transform=place,
        **profile,
    ) as file:
        file.write(values)
        file.update_tags(EXPLORA_MODEL='this')
    write_cog(tmp_path / 'a.tif', tmp_path / 'b.tif')
    valid, errors, warnings = validate(tmp_path / 'b.tif', strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(tmp_path / 'b.tif') as file:
        # The longer side is 300 and that of a block 256.
        assert file.overviews(1) == [2]
        assert file.tags()['EXPLORA_MODEL'] == 'this'
        small = file.read(1, out_shape=(75, 50))
        assert np.nanmin(small) == np.nanmax(small) == 1
        assert np.isnan(small[:, 26:]).all()


@pytest.mark.parametrize(
    ('values', 'overview'),
    [
        (np.float32([[1, 2], [3, np.nan]]), 2),
        (np.uint8([[7, 4], [4, 255]]), 4),
        (np.uint8([[255, 255], [255, 9]]), 9),
    ],
)
def test_overview_is_of_pixels_with_data(values, overview, tmp_path):
    """The mean of embeddings, and the most frequent class."""
    nodata = np.nan if values.dtype == np.float32 else 255
    many = np.tile(values, (300, 301))
    profile = {'driver': 'GTiff', 'count': 1, 'height': 600, 'width': 602}
    with rasterio.open(
        tmp_path / 'a.tif',
        'w',
        dtype=values.dtype,
        nodata=nodata,
        crs='EPSG:32632',
        transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10),
        **profile,
    ) as file:
        file.write(many, 1)
    write_cog(tmp_path / 'a.tif', tmp_path / 'b.tif')
    with rasterio.open(tmp_path / 'b.tif') as file:
        # Deflate is read everywhere, and Zstandard is fast enough for many bands.
        kind = 'zstd' if values.dtype == np.float32 else 'deflate'
        assert file.profile['compress'] == kind
    with rasterio.open(tmp_path / 'b.tif', OVERVIEW_LEVEL=0) as file:
        assert file.shape == (300, 301)
        assert (file.read(1) == overview).all()


def test_checkpoint_of_a_task_maps_its_classes(scene, tmp_path):
    torch.manual_seed(0)
    task = ExploraSegmentationTask(**VIT, num_classes=3, decoder_channels=8)
    trainer = Trainer(
        accelerator='cpu',
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
    )
    data = RasterSceneDataModule(str(scene), size=32, overlap=8, block=64)
    trainer.predict(task, data)
    trainer.save_checkpoint(tmp_path / 'task.ckpt')
    target = tmp_path / 'out.tif'
    torch.manual_seed(0)  # the base has random weights
    map_scenes(scene, target, None, None, checkpoint=tmp_path / 'task.ckpt', **QUIET)
    with rasterio.open(target) as file:
        assert file.dtypes == ('uint8',)
        assert set(np.unique(file.read(1))) <= {0, 1, 2, 255}
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r'\*components\* is for embeddings'):
        map_scenes(
            scene,
            tmp_path / 'b.tif',
            None,
            None,
            checkpoint=tmp_path / 'task.ckpt',
            components=3,
            **QUIET,
        )


# Bad input --------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['embeddings', 'classes'])
def test_image_without_a_place_is_warned_of_once(kind, tmp_path, backbone):
    """By the writer, not by rasterio at every opening."""
    Image.new('RGB', (64, 48)).save(tmp_path / 'plain.png')
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        if kind == 'embeddings':
            run(tmp_path / 'plain.png', tmp_path / 'scene.tif', backbone)
        else:
            task = ExploraSegmentationTask(**VIT, num_classes=3, decoder_channels=8)
            data = RasterSceneDataModule(str(tmp_path / 'plain.png'), 32, 8, 64)
            options = {'logger': False, 'enable_progress_bar': False}
            Trainer(accelerator='cpu', default_root_dir=tmp_path, **options).predict(
                task, data
            )
    said = [str(each.message) for each in told if 'plain.png' in str(each.message)]
    assert len(said) == 1
    assert 'has no coordinate system, so' in said[0]
    assert not [each for each in told if each.category is NotGeoreferencedWarning]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        file = rasterio.open(tmp_path / 'scene.tif')
    with file:
        assert file.crs is None


def test_one_unreadable_scene_among_many(tmp_path, backbone):
    root = write_scenes(tmp_path / 'scenes')
    (root / 'a_20200110.tif').write_bytes(b'not a raster')
    with pytest.raises(ValueError, match=r'a_20200110\.tif cannot be read'):
        run(root, tmp_path / 'out', backbone)
    with pytest.warns(UserWarning, match=r'1 of 4 scenes .* such as .*a_20200110'):
        assert len(run(root, tmp_path / 'out', backbone, on_error='skip')) == 3


def test_scene_without_data_is_all_no_data(tmp_path, backbone):
    empty = write_scene(tmp_path / 'empty.tif', size=(64, 64), hole=(0, 64, 0, 64))
    for components in (None, 2):
        target = tmp_path / f'{components}.tif'
        run(empty, target, backbone, components=components)
        with rasterio.open(target) as file:
            assert np.isnan(file.read()).all()


def test_output_that_another_run_wrote(scene, tmp_path, backbone):
    target = tmp_path / 'out.tif'
    run(scene, target, backbone)
    with pytest.raises(FileExistsError, match='exists: choose another'):
        run(scene, target, backbone, components=2)
    run(scene, target, backbone, components=2, overwrite=True)
    with rasterio.open(target) as file:
        assert file.count == 2


def test_wrong_arguments(scene, tmp_path, backbone):
    target = tmp_path / 'out.tif'
    with pytest.raises(ValueError, match=r'either \*model\*'):
        map_scenes(scene, target)
    with pytest.raises(ValueError, match=r'\*components\* is 0'):
        run(scene, target, backbone, components=0)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match='have 24 values: give at most 24'):
        run(scene, target, backbone, components=1000)
    assert sorted(tmp_path.iterdir()) == before
    write_scene(tmp_path / 't.tif', size=(40, 40))
    with pytest.raises(ValueError, match='one file for 2 scenes: give a folder'):
        run(tmp_path, target, backbone)
    torch.save({'state_dict': {}}, tmp_path / 'other.ckpt')
    with pytest.raises(ValueError, match='of a task that makes maps'):
        map_scenes(scene, target, checkpoint=tmp_path / 'other.ckpt')
