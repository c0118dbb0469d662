"""Maps of whole scenes by `torchgeo predict`."""

import os
import signal

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rasterio.control import GroundControlPoint

from tests.tasks.small_runs import VIT, command, write_config
from torchgeo_explora.callbacks import RasterWriter
from torchgeo_explora.callbacks.writers.parquet import ProbabilityWriter
from torchgeo_explora.datamodules import ImageFolderDataModule, RasterSceneDataModule
from torchgeo_explora.functional.windows import slide
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraDetectionTask,
    ExploraKNNTask,
    ExploraSegmentationTask,
)

pytestmark = pytest.mark.filterwarnings('ignore')

SEGMENT = {**VIT, 'num_classes': 3, 'decoder_channels': 8, 'decoder': 'linear'}


@pytest.fixture
def scene(tmp_path):
    """A scene of 100 x 140 pixels with a hole of no data."""
    values = np.random.default_rng(0).integers(1, 255, (3, 100, 140)).astype('uint8')
    values[:, :50, 90:] = 0
    path = tmp_path / 'in.tif'
    with rasterio.open(
        path,
        'w',
        count=3,
        height=100,
        width=140,
        dtype='uint8',
        crs='EPSG:32632',
        transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10),
        nodata=0,
    ) as file:
        file.write(values)
    return path


def segmenter():
    torch.manual_seed(0)
    return ExploraSegmentationTask(**SEGMENT)


def predict(task, scene, target, **arguments):
    settings = {'size': 32, 'overlap': 8, 'block': 48, **arguments}
    found = Trainer(
        accelerator='cpu',
        logger=False,
        enable_progress_bar=False,
        callbacks=[RasterWriter(target)],
    ).predict(task, RasterSceneDataModule(str(scene), **settings))
    assert not found, 'a scene would be kept in memory'
    return target.read_bytes()


def test_classes_are_those_of_the_whole_scene_to_the_pixel(scene, tmp_path):
    task, target = segmenter(), tmp_path / 'out.tif'
    predict(task, scene, target)
    with rasterio.open(scene) as file:
        image = torch.from_numpy(file.read() / np.float32(255))[None]
        valid = torch.from_numpy(file.dataset_mask() > 0)
        place = file.crs, file.transform
    with torch.no_grad():
        whole = slide(image, 32, 24, task.eval().dense, valid=valid)[0].argmax(0)
    expected = whole.masked_fill(~valid, 255).numpy()
    with rasterio.open(target) as file:
        assert (file.crs, file.transform) == place
        assert (file.count, file.dtypes, file.nodata) == (1, ('uint8',), 255)
        assert np.array_equal(file.read(1), expected)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_killed_and_resumed_gives_the_same_file(scene, tmp_path, monkeypatch):
    task, target = segmenter(), tmp_path / 'out.tif'
    whole = predict(task, scene, target)
    target.unlink()
    mapped = []
    map_block = task.map_block

    def cut(batch):
        if len(mapped) == 3:
            raise RuntimeError('power cut')
        mapped.append(int(batch['block']))
        return map_block(batch)

    with monkeypatch.context() as patch:
        patch.setattr(task, 'map_block', cut)
        with pytest.raises(RuntimeError, match='power cut'):
            predict(task, scene, target)
    assert not target.exists()
    with monkeypatch.context() as patch:
        again = []
        patch.setattr(
            task,
            'map_block',
            lambda batch: again.append(int(batch['block'])) or map_block(batch),
        )
        assert predict(task, scene, target) == whole
    assert not set(again) & set(mapped)


def test_map_stops_on_sigterm_and_goes_on(scene, tmp_path, monkeypatch, caplog):
    """Lightning's own loop would go on until it is killed."""
    task, target = segmenter(), tmp_path / 'out.tif'
    whole = predict(task, scene, target)
    target.unlink()
    mapped, map_block = [], task.map_block

    def asked(batch):
        mapped.append(int(batch['block']))
        if len(mapped) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return map_block(batch)

    caplog.set_level('INFO')
    monkeypatch.setattr(task, 'map_block', asked)
    with pytest.raises(SIGTERMException) as stopped:
        predict(task, scene, target)
    assert stopped.value.code == 143
    assert '3 parts of' in caplog.text
    assert not target.exists()
    assert predict(task, scene, target) == whole
    assert len(mapped) == len(set(mapped))


def test_bands_of_a_scene_are_chosen(scene, tmp_path):
    task = segmenter()
    forward = predict(task, scene, tmp_path / 'a.tif', channels=[1, 2, 3])
    assert predict(task, scene, tmp_path / 'b.tif') == forward
    assert predict(task, scene, tmp_path / 'c.tif', channels=[3, 2, 1]) != forward


def test_bands_that_a_scene_names_are_found(scene, tmp_path):
    """Their order is the model's, as for `explora embed`; any spelling is right."""
    with rasterio.open(scene, 'r+') as file:
        file.descriptions = ('B02', 'B08', 'B04')
    data = RasterSceneDataModule(str(scene), 32, 8, bands=['B8', 'B04'])
    for _ in range(2):
        data.setup('predict')
        assert data.predict_dataset.channels == [2, 3]
        assert data.bands == ('B8', 'B04')
    data = RasterSceneDataModule(str(scene), 32, 8, bands=['B11', 'B04'])
    with pytest.raises(ValueError, match='3 bands, B02, B08, B04: choose among them'):
        data.setup('predict')
    data = RasterSceneDataModule(str(scene), 32, 8, bands=['x', 'y', 'z'])
    data.setup('predict')
    assert data.predict_dataset.channels == [1, 2, 3]


def test_more_classes_than_8_bits_hold_are_refused(scene, tmp_path):
    torch.manual_seed(0)
    task = ExploraSegmentationTask(**{**SEGMENT, 'num_classes': 256})
    with pytest.raises(ValueError, match='up to 255 classes, but the task has'):
        predict(task, scene, tmp_path / 'out.tif')


def test_blocks_of_another_model_are_thrown_away(scene, tmp_path, monkeypatch):
    task, target = segmenter(), tmp_path / 'out.tif'
    whole = predict(task, scene, target)
    target.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(RasterWriter, 'join', lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(task, scene, target)
    with torch.no_grad():
        task.head.classify.bias += torch.tensor([9.0, 0, 0])
    assert predict(task, scene, target) != whole


def test_blocks_of_another_setting_are_thrown_away(scene, tmp_path, monkeypatch):
    target = tmp_path / 'out.tif'
    with monkeypatch.context() as patch:
        patch.setattr(RasterWriter, 'join', lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(segmenter(), scene, target)
    torch.manual_seed(0)
    # The weights are the same.
    predict(ExploraSegmentationTask(**SEGMENT, ignore_index=0), scene, target)
    with rasterio.open(target) as file:
        assert 0 not in file.read(1)


@pytest.mark.parametrize('bias', [-9.0, 9.0])
def test_one_of_two_classes_is_mapped(bias, scene, tmp_path):
    task, target = ExploraClassificationTask(task='binary', **VIT), tmp_path / 'out.tif'
    task.head.linear.bias.data.fill_(bias)
    predict(task, scene, target)
    with rasterio.open(target) as file:
        assert set(np.unique(file.read(1))) == {int(bias > 0), 255}


def test_objects_are_no_map(scene, tmp_path):
    task = ExploraDetectionTask(num_classes=2, pyramid_channels=32, **VIT)
    with pytest.raises(ValueError, match='objects do not make a map'):
        predict(task, scene, tmp_path / 'out.tif')


def test_embeddings_have_a_band_for_each_value_and_cells_of_a_patch(scene, tmp_path):
    torch.manual_seed(0)
    target = tmp_path / 'out.tif'
    predict(ExploraKNNTask(**VIT), scene, target)
    with rasterio.open(scene) as file:
        transform = file.transform
    with rasterio.open(target) as file:
        assert (file.count, file.height, file.width) == (24, 13, 18)
        assert file.transform == transform @ rasterio.Affine.scale(8)
        values = file.read()
    assert np.isnan(values[:, :6, 12:]).all()
    assert np.isfinite(values[:, 7:]).all()


def test_scene_without_a_coordinate_system_works_and_says_so(tmp_path):
    path = tmp_path / 'in.tif'
    values = np.full((3, 40, 40), 7, np.uint8)
    with rasterio.open(path, 'w', count=3, height=40, width=40, dtype='uint8') as file:
        file.write(values)
    with pytest.warns(UserWarning, match='has no coordinate system'):
        predict(segmenter(), path, tmp_path / 'out.tif')


def write_values(path, values, **profile):
    bands, height, width = values.shape
    with rasterio.open(
        path,
        'w',
        count=bands,
        height=height,
        width=width,
        dtype=values.dtype,
        **profile,
    ) as file:
        file.write(values)
    return path


def test_ground_control_points_of_a_scene_are_kept(tmp_path, recwarn):
    values = np.random.default_rng(0).integers(1, 255, (3, 40, 48)).astype('uint8')
    path = write_values(tmp_path / 'in.tif', values)
    corners = [(row, column) for row in (0, 40) for column in (0, 48)]
    points = [
        GroundControlPoint(row, column, 5e5 + 10 * column, 5e6 - 10 * row)
        for row, column in corners
    ]
    with rasterio.open(path, 'r+') as file:
        file.gcps = points, rasterio.CRS.from_epsg(32632)
    torch.manual_seed(0)
    predict(ExploraKNNTask(**VIT), path, tmp_path / 'out.tif')
    with rasterio.open(tmp_path / 'out.tif') as file:
        found, system = file.gcps
    assert system.to_epsg() == 32632
    assert [(p.row, p.col) for p in found] == [(r / 8, c / 8) for r, c in corners]
    assert [(p.x, p.y) for p in found] == [(p.x, p.y) for p in points]
    assert not any('no coordinate system' in str(w.message) for w in recwarn)


def test_scene_may_start_without_data(tmp_path):
    """Its value of 65535 is far from the range, and means nothing."""
    values = np.random.default_rng(0).integers(1, 9000, (3, 100, 96)).astype('uint16')
    values[:, :48, :48] = 65535
    path = write_values(tmp_path / 'in.tif', values, nodata=65535)
    dark = values * (values != 65535)
    black = write_values(tmp_path / 'black.tif', dark, nodata=0)
    task = segmenter()
    predict(task, path, tmp_path / 'out.tif', overlap=0)
    predict(task, black, tmp_path / 'expected.tif', overlap=0)
    with (
        rasterio.open(tmp_path / 'out.tif') as file,
        rasterio.open(tmp_path / 'expected.tif') as other,
    ):
        classes = file.read(1)
        assert np.array_equal(classes, other.read(1))
    assert (classes[:48, :48] == 255).all()
    assert (classes[48:] != 255).all()


def test_wrong_range_is_found_after_blocks_without_data(tmp_path):
    values = np.full((3, 96, 48), 60_000, 'uint16')
    values[:, :48] = 65535
    path = write_values(tmp_path / 'in.tif', values, nodata=65535)
    with pytest.raises(ValueError, match='lie outside the value range'):
        predict(segmenter(), path, tmp_path / 'out.tif', overlap=0)


def test_alpha_of_a_scene_is_no_band(tmp_path):
    values = np.random.default_rng(0).integers(1, 255, (4, 64, 64)).astype('uint8')
    values[3] = 255
    values[3, :32, :32] = 0
    path = write_values(tmp_path / 'in.tif', values, photometric='RGB', alpha='YES')
    predict(segmenter(), path, tmp_path / 'out.tif')
    with rasterio.open(tmp_path / 'out.tif') as file:
        assert np.array_equal(file.read(1) == 255, values[3] == 0)


def test_scene_without_any_data_is_all_no_data(tmp_path):
    path, target = tmp_path / 'in.tif', tmp_path / 'out.tif'
    with rasterio.open(
        path, 'w', count=3, height=40, width=40, dtype='uint8', nodata=0
    ) as file:
        file.write(np.zeros((3, 40, 40), np.uint8))
    predict(segmenter(), path, target)
    with rasterio.open(target) as file:
        assert (file.read(1) == 255).all()


@pytest.mark.cli
def test_command(scene, tmp_path):
    data = {
        'class_path': 'torchgeo_explora.datamodules.RasterSceneDataModule',
        'init_args': {'path': str(scene), 'size': 32, 'overlap': 8, 'block': 48},
    }
    model = {
        key: SEGMENT[key] for key in ('num_classes', 'decoder', 'decoder_channels')
    }
    config = write_config(tmp_path, 'ExploraSegmentationTask', model, data)
    command('predict', config)
    with rasterio.open(tmp_path / 'scene.tif') as file:
        assert file.shape == (100, 140)


def test_one_trainer_attaches_one_writer_after_fit_and_other_predictions(
    scene, folder, tmp_path
):
    """A scene is not given to the writer that the images before it had."""
    torch.manual_seed(0)
    task = ExploraClassificationTask(num_classes=2, **VIT)
    trainer = Trainer(
        accelerator='cpu',
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    images = ImageFolderDataModule(folder, batch_size=8)
    whole = RasterSceneDataModule(str(scene), size=32, overlap=8, block=48)

    def writers():
        callbacks = trainer.callbacks
        return [type(c) for c in callbacks if isinstance(c, BasePredictionWriter)]

    trainer.fit(task, images)
    assert writers() == []
    trainer.predict(task, whole)
    assert writers() == [RasterWriter]
    trainer.predict(task, images)
    assert writers() == [ProbabilityWriter]
    trainer.predict(task, whole)
    assert writers() == [RasterWriter]
    names = {path.name for path in tmp_path.iterdir()}
    assert {'scene.tif', ProbabilityWriter.file} <= names


@pytest.mark.parametrize(('dtype', 'known'), [('uint8', True), ('uint16', False)])
def test_the_range_of_16_bits_is_a_guess(tmp_path, dtype, known):
    with rasterio.open(
        tmp_path / 'in.tif', 'w', count=1, height=32, width=32, dtype=dtype
    ) as file:
        file.write(np.ones((1, 32, 32), dtype))
    for given, expected in ((None, known), ((0, 4000), True)):
        data = RasterSceneDataModule(str(tmp_path / 'in.tif'), 32, 0, value_range=given)
        data.setup('predict')
        assert data.range_known is expected
