"""Pixels and objects from TorchGeo's own data modules, unchanged."""

import json

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torchgeo.datamodules import (
    LandCoverAIDataModule,
    Potsdam2DDataModule,
    SpaceNet1DataModule,
    VHR10DataModule,
)
from torchgeo.datasets import Potsdam2D, SpaceNet1

from tests.tasks.small_runs import VIT
from torchgeo_explora.tasks import ExploraDetectionTask, ExploraSegmentationTask

pytestmark = [pytest.mark.cli, pytest.mark.filterwarnings('ignore')]

RANDOM = np.random.default_rng(0)


def run(task, data, place):
    """Fit an epoch and test; return the metrics of both."""
    trainer = Trainer(
        accelerator='cpu',
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=place,
    )
    trainer.fit(task, data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (tested,) = trainer.test(task, data, verbose=False)
    return found | tested


def segmenter(**arguments):
    torch.manual_seed(0)
    return ExploraSegmentationTask(**{**VIT, 'decoder': 'linear', **arguments})


def noise(bands, height, width):
    return RANDOM.integers(1, 256, (bands, height, width)).astype('uint8')


def write_tiff(path, array, transform=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        'w',
        count=len(array),
        height=array.shape[1],
        width=array.shape[2],
        dtype='uint8',
        crs='EPSG:4326',
        transform=transform,
    ) as file:
        file.write(array)


def write_picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_spacenet1_counts_neither_padding_nor_black_pixels(tmp_path, monkeypatch):
    """Chips of two sizes; a building left, no data in the lowest rows."""
    folder = tmp_path / 'SN1_buildings' / 'train'
    monkeypatch.setattr(SpaceNet1, 'chip_size', {'3band': (40, 44)})
    ring = [[0, 0], [20e-5, 0], [20e-5, -40e-5], [0, -40e-5], [0, 0]]
    feature = {
        'type': 'Feature',
        'properties': {},
        'geometry': {'type': 'Polygon', 'coordinates': [ring]},
    }
    for number in range(10):
        image = noise(3, 40, 44 - number % 2)
        image[:, 30:] = 0
        name = f'AOI_1_RIO_img{number}'
        place = rasterio.transform.from_origin(0, 0, 1e-5, 1e-5)
        write_tiff(folder / '3band' / f'3band_{name}.tif', image, place)
        shapes = folder / 'geojson' / f'Geo_{name}.geojson'
        shapes.parent.mkdir(exist_ok=True)
        content = {'type': 'FeatureCollection', 'features': [feature]}
        shapes.write_text(json.dumps(content))
    task = segmenter(num_classes=3, ignore_index=0, no_data=0)
    seen = []
    targets_of = task._targets
    task._targets = lambda batch: seen.append(targets_of(batch)) or seen[-1]
    found = run(task, SpaceNet1DataModule(root=tmp_path, batch_size=2), tmp_path)
    both = torch.tensor([found['test_IoU_1'], found['test_IoU_2']])
    assert found['test_mIoU'] == pytest.approx(both.mean().item())
    for targets in seen:
        assert (targets[:, 30:] == -1).all()
        assert (targets[:, :30, :20] == 2).all()
        assert (targets[:, :30, 20:43] == 1).all()
        # A chip of 43 columns is padded beside one of 44.
        assert set(targets[..., 43:].unique().tolist()) <= {-1, 1}


def test_landcover_ai_is_taken(tmp_path):
    for split, numbers in (('train', range(4)), ('val', [4, 5]), ('test', [6, 7])):
        names = [f'M-33_{number}' for number in numbers]
        (tmp_path / f'{split}.txt').write_text('\n'.join(names))
        for name in names:
            picture = tmp_path / 'output' / f'{name}.jpg'
            write_picture(picture, noise(3, 48, 48).transpose(1, 2, 0))
            classes = RANDOM.integers(0, 5, (48, 48)).astype('uint8')
            write_picture(picture.with_name(f'{name}_m.png'), classes)
    data = LandCoverAIDataModule(root=tmp_path, batch_size=2)
    found = run(segmenter(num_classes=5), data, tmp_path)
    assert 0 < found['test_mIoU'] < 1
    assert 'val_IoU_4' in found


def test_potsdam_with_its_four_bands_is_taken(tmp_path):
    colours = np.array(Potsdam2D.colormap, 'uint8')
    names = Potsdam2D.splits['train'][:4] + Potsdam2D.splits['test'][:2]
    for name in names:
        picture = tmp_path / Potsdam2D.image_root / f'{name}_RGBIR.tif'
        write_tiff(picture, noise(4, 50, 50))
        classes = colours[RANDOM.integers(0, 6, (50, 50))]
        write_tiff(tmp_path / f'{name}_label.tif', classes.transpose(2, 0, 1))
    data = Potsdam2DDataModule(root=tmp_path, batch_size=2, val_split_pct=0.5)
    task = segmenter(num_classes=6, in_channels=4, labels=list(Potsdam2D.classes))
    found = run(task, data, tmp_path)
    assert 0 < found['test_mIoU'] < 1
    assert 'test_IoU_Car' in found


def test_vhr10_is_taken(tmp_path):
    folder = tmp_path / 'NWPU VHR-10 dataset'
    (tmp_path / 'NWPU VHR-10 dataset.zip').touch()
    images, annotations = [], []
    for number in range(10):
        name = f'{number:03}.jpg'
        picture = folder / 'positive image set' / name
        write_picture(picture, noise(3, 40, 50 + number).transpose(1, 2, 0))
        image = {'file_name': name, 'height': 40, 'width': 50 + number, 'id': number}
        images.append(image)
        for kind in range(1, 1 + number % 3 + 1):
            annotations.append(
                {
                    'image_id': number,
                    'category_id': kind,
                    'bbox': [2, 3, 20, 10],
                    'segmentation': [[2, 3, 22, 3, 22, 13, 2, 13]],
                }
            )
    content = {'images': images, 'annotations': annotations}
    (folder / 'annotations.json').write_text(json.dumps(content))
    data = VHR10DataModule(root=tmp_path, batch_size=2, patch_size=32, checksum=False)
    torch.manual_seed(0)
    task = ExploraDetectionTask(**VIT, num_classes=11, pyramid_channels=32)
    found = run(task, data, tmp_path)
    assert 0 <= found['test_map_50'] <= 1
    assert found['train_loss'] > 0
