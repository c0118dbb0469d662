"""TorchGeo's own command on small generated data: fit and test."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torchgeo.main import main

from torchgeo_explora.datasets import FMoWRGB, prepare

pytestmark = [
    pytest.mark.cli,
    pytest.mark.filterwarnings('ignore'),
]

TRAINER = {
    'accelerator': 'cpu',
    'fast_dev_run': True,
    'logger': False,
    'enable_progress_bar': False,
    'enable_model_summary': False,
}
PRETRAIN = {
    'class_path': 'torchgeo_explora.tasks.ExploraDinoTask',
    'init_args': {
        'model': 'vit_tiny_patch16_224',
        'weights': None,
        'model_args': {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2},
        'image_size': 32,
        'local_size': 16,
        'local_views': 2,
        'rank': 4,
        'prototypes': 32,
        'hidden_dim': 16,
        'bottleneck_dim': 8,
    },
}


def classify(num_classes, in_channels=3):
    """TorchGeo's own classification task."""
    return {
        'class_path': 'torchgeo.tasks.Classification',
        'init_args': {
            'model': 'resnet18',
            'num_classes': num_classes,
            'in_channels': in_channels,
        },
    }


@pytest.fixture
def run(tmp_path):
    """Run a command on a model and a data module."""

    def call(command, model, name, **arguments):
        config = {
            'trainer': TRAINER | {'default_root_dir': str(tmp_path)},
            'model': model,
            'data': {
                'class_path': f'torchgeo_explora.datamodules.{name}',
                'init_args': {
                    key: str(value) if isinstance(value, Path) else value
                    for key, value in arguments.items()
                },
            },
        }
        path = tmp_path / 'config.yaml'
        path.write_text(yaml.safe_dump(config))
        main([command, '--config', str(path)])

    return call


def test_fmow_rgb(fake, run, tmp_path):
    root = fake('fmow').write_fmow(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    run('fit', PRETRAIN, 'FMoWRGBDataModule', **arguments)
    for crop in ('box', 'image'):
        for command in ('fit', 'test'):
            run(command, classify(62), 'FMoWRGBDataModule', crop=crop, **arguments)


def test_fmow_sentinel(fake, run, tmp_path):
    root = fake('fmow_sentinel').write_fmow_sentinel(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    name = 'FMoWSentinelDataModule'
    run('fit', PRETRAIN, name, bands=['B04', 'B03', 'B02'], **arguments)
    for command in ('fit', 'test'):
        run(command, classify(62, 13), name, **arguments)


def test_scenes(fake, run, tmp_path):
    """From a folder of overlapping scenes in two zones to a delta, by one command."""
    root = fake('scenes').write_scenes(tmp_path / 'scenes')
    arguments = {'paths': root, 'batch_size': 4, 'size': 32, 'length': 8}
    run('fit', PRETRAIN, 'ScenesDataModule', **arguments)
    run('predict', PRETRAIN, 'ScenesDataModule', **arguments)
    run('fit', PRETRAIN, 'ScenesDataModule', crs='EPSG:32632', **arguments)
    assert (tmp_path / 'delta.safetensors').exists()


def test_camelyon17(fake, run, tmp_path):
    root = fake('wilds').write_camelyon17(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    name = 'Camelyon17DataModule'
    run('fit', PRETRAIN, name, train_split='train_unlabeled', **arguments)
    for command in ('fit', 'test'):
        run(command, classify(2), name, **arguments)


def test_iwildcam(fake, run, tmp_path):
    root = fake('wilds').write_iwildcam(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    run('fit', PRETRAIN, 'IWildCamDataModule', **arguments)
    for command in ('fit', 'test'):
        run(command, classify(182), 'IWildCamDataModule', **arguments)


def test_globalwheat(fake, run, tmp_path):
    root = fake('wilds').write_globalwheat(tmp_path)
    detect = {
        'class_path': 'torchgeo.tasks.ObjectDetection',
        'init_args': {'model': 'fcos', 'backbone': 'resnet18', 'num_classes': 2},
    }
    arguments = {'root': root, 'batch_size': 2, 'size': 64}
    name = 'GlobalWheatDataModule'
    run('fit', PRETRAIN, name, train_split='extra_unlabeled', **arguments)
    for command in ('fit', 'test'):
        run(command, detect, name, **arguments)


def test_csv_file(run, tmp_path):
    """Label-free pre-training, then classification and kNN by another column."""
    lines = ['file,kind,part']
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3))
        Image.fromarray(pixels.astype('uint8')).save(tmp_path / f'{number}.png')
        part = ('train', 'val', 'test')[min(number // 4, 2)]
        lines.append(f'{number}.png,{"ab"[number % 2]},{part}')
    (tmp_path / 'metadata.csv').write_text('\n'.join(lines))
    columns = {'path': 'file', 'label': None, 'split': None}
    arguments = {'root': tmp_path, 'batch_size': 4}
    name = 'CSVDataModule'
    run('fit', PRETRAIN, name, columns=columns, val_split=None, **arguments)
    assert (tmp_path / 'delta.safetensors').exists()
    arguments['columns'] = columns | {'label': 'kind', 'split': 'part'}
    for command in ('fit', 'test', 'predict'):
        run(command, classify(2), name, **arguments)
    neighbours = {
        'class_path': 'torchgeo_explora.tasks.ExploraKNNTask',
        'init_args': {
            **{key: PRETRAIN['init_args'][key] for key in ('model', 'model_args')},
            'weights': None,
            'image_size': 32,
            'k': [2],
        },
    }
    run('test', neighbours, name, **arguments)


def test_naip(fake, run, tmp_path):
    root = fake('naip').write_naip(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    run('fit', PRETRAIN, 'NAIPLandCoverDataModule', **arguments)
    for command in ('fit', 'test'):
        run(command, classify(66), 'NAIPLandCoverDataModule', **arguments)


MASKED = {
    'class_path': 'torchgeo_explora.tasks.ExploraMAETask',
    'init_args': {
        'weights': None,
        'rank': 4,
        'decoder_dim': 48,
        'decoder_depth': 1,
        'decoder_heads': 2,
        'decoder_time_dim': 12,
        'decoder_channel_dim': 8,
    },
}


def test_fmow_temporal(fake, run, tmp_path):
    """M-ExPLoRA of SatMAE's temporal backbone, on series with their times."""
    backbone = {
        'class_path': 'torchgeo_explora.models.TemporalViT',
        'init_args': {
            'image_size': 32,
            'patch_size': 8,
            'embed_dim': 48,
            'depth': 2,
            'num_heads': 2,
            'time_embed_dim': 12,
        },
    }
    model = {**MASKED, 'init_args': MASKED['init_args'] | {'model': backbone}}
    root = fake('fmow').write_fmow(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    for legacy in (False, True):
        run('fit', model, 'FMoWTemporalDataModule', legacy_sampling=legacy, **arguments)
    classify = {
        'class_path': 'torchgeo_explora.tasks.ExploraClassificationTask',
        'init_args': {'model': backbone, 'weights': None, 'num_classes': 62},
    }
    for command in ('fit', 'test'):
        run(command, classify, 'FMoWTemporalDataModule', **arguments)


def test_fmow_sentinel_by_spectral_groups(fake, run, tmp_path):
    """M-ExPLoRA of SatMAE's group-channel backbone, bands chosen by name."""
    groups = [
        ['B02', 'B03', 'B04', 'B08'],
        ['B05', 'B06', 'B07', 'B8A'],
        ['B11', 'B12'],
    ]
    backbone = {
        'class_path': 'torchgeo_explora.models.GroupChannelViT',
        'init_args': {
            'groups': groups,
            'image_size': 32,
            'patch_size': 8,
            'embed_dim': 48,
            'depth': 2,
            'num_heads': 2,
            'channel_embed_dim': 16,
        },
    }
    model = {
        **MASKED,
        'init_args': MASKED['init_args'] | {'model': backbone, 'quantize': True},
    }
    root = fake('fmow_sentinel').write_fmow_sentinel(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    run('fit', model, 'FMoWSentinelDataModule', **arguments)


def test_prepared(fake, run, tmp_path):
    root = fake('fmow').write_fmow(tmp_path)
    for split in ('train', 'val'):
        raw = FMoWRGB(root, split, size=32)
        prepare(raw, tmp_path / 'out' / split, samples_per_shard=2, progress=False)
    arguments = {'root': tmp_path / 'out', 'batch_size': 4}
    name = 'PreparedDataModule'
    run('fit', PRETRAIN, name, stream=4, **arguments)
    run('fit', classify(62), name, **arguments)
    run('test', classify(62), name, test_split='val', **arguments)
