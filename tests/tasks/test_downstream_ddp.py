"""Two processes give what one gives."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from tests.data.scenes import write_scenes
from tests.tasks.small_runs import command, images, write_config

pytestmark = [pytest.mark.cli, pytest.mark.filterwarnings('ignore')]

PROBE = {'num_classes': 2, 'grid': [0.1], 'blocks': [1]}
SEGMENT = {'num_classes': 3, 'decoder': 'linear'}


def torchgeo(stage, config, processes):
    """Run the command; two processes start from one of their own."""
    if processes == 1:
        command(stage, config)
        return
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'torchgeo', stage, '--config', config),
            *('--trainer.devices', '2', '--trainer.strategy', 'ddp'),
        ],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_neighbours(folder, tmp_path):
    found = []
    for processes in (1, 2):
        place = tmp_path / str(processes)
        place.mkdir()
        # 7 images a batch: shares of the bank end within one.
        data = images(folder, batch_size=7)
        config = write_config(place, 'ExploraKNNTask', {'k': [1, 5]}, data)
        torchgeo('validate', config, processes)
        found.append(rows(place / 'knn_val.csv'))
    assert found[0] == found[1]


def test_cached_features(folder, tmp_path):
    model = PROBE | {'cache': str(tmp_path / 'cache')}
    config = write_config(
        tmp_path, 'ExploraLinearProbeTask', model, images(folder, batch_size=4)
    )
    torchgeo('fit', config, 2)
    assert len(list((tmp_path / 'cache').iterdir())) == 4
    assert len(rows(tmp_path / 'probe.csv')) == 2
    # Of both processes: 4 images of each class.
    confusion = rows(tmp_path / 'confusion_val.csv')
    assert [int(r['as field']) + int(r['as water']) for r in confusion] == [4, 4]
    worst = rows(tmp_path / 'worst_val.csv')
    assert len({row['path'] for row in worst}) == 8


def test_map_of_a_scene(tmp_path):
    values = np.random.default_rng(0).integers(1, 255, (3, 100, 140)).astype('uint8')
    with rasterio.open(
        tmp_path / 'in.tif', 'w', count=3, height=100, width=140, dtype='uint8'
    ) as file:
        file.write(values)
    data = {
        'class_path': 'torchgeo_explora.datamodules.RasterSceneDataModule',
        'init_args': {
            'path': str(tmp_path / 'in.tif'),
            'size': 32,
            'overlap': 8,
            'block': 48,
        },
    }
    maps = []
    for processes in (1, 2):
        place = tmp_path / str(processes)
        place.mkdir()
        config = write_config(place, 'ExploraSegmentationTask', SEGMENT, data)
        torchgeo('predict', config, processes)
        maps.append((place / 'scene.tif').read_bytes())
    assert maps[0] == maps[1]


def test_embeddings_of_scenes(tmp_path):
    root = write_scenes(tmp_path / 'scenes')
    data = {
        'class_path': 'torchgeo_explora.datamodules.ScenesDataModule',
        'init_args': {'paths': str(root), 'size': 48, 'batch_size': 8},
    }
    files = []
    for processes in (1, 2):
        place = tmp_path / str(processes)
        place.mkdir()
        config = write_config(place, 'ExploraKNNTask', {}, data)
        torchgeo('predict', config, processes)
        files.append((place / 'embeddings.parquet').read_bytes())
    assert files[0] == files[1]
