"""TorchGeo's own command on small generated data: fit and test."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torchgeo.main import main

from torchgeo_explora.adapt import delta_state_dict, read_delta_metadata
from torchgeo_explora.datasets import FMoWRGB, prepare
from torchgeo_explora.export import rebuild
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT

pytestmark = [
    pytest.mark.cli,
    pytest.mark.filterwarnings('ignore'),
]

# One batch of each split, written as a whole run would be.
TRAINER = {
    'accelerator': 'cpu',
    'max_steps': 1,
    'max_epochs': 1,
    'limit_train_batches': 1,
    'limit_val_batches': 1,
    'limit_test_batches': 1,
    'num_sanity_val_steps': 0,
    'log_every_n_steps': 1,
    'enable_progress_bar': False,
    'enable_model_summary': False,
}
SIZES = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}
PRETRAIN = {
    'class_path': 'torchgeo_explora.tasks.ExploraDinoTask',
    'init_args': {
        'model': 'vit_tiny_patch16_224',
        'model_args': SIZES,
        'image_size': 32,
        'views': {
            'local_size': 16,
            'local_views': 2,
        },
        'rank': 4,
        'objective': {
            'prototypes': 32,
            'hidden_dim': 16,
            'bottleneck_dim': 8,
        },
    },
}


def classify(num_classes, in_channels=3):
    """TorchGeo's own classification task."""
    return {
        'class_path': 'torchgeo.tasks.Classification',
        'init_args': {
            'model': 'test_resnet',
            'num_classes': num_classes,
            'in_channels': in_channels,
        },
    }


def save_base(backbone, path):
    """Write the weights of a backbone in published names, and return the path."""
    tensors = backbone.canonical_state_dict()
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return str(path)


@pytest.fixture
def pretrain(tmp_path):
    """Return D-ExPLoRA on a base that is a file."""
    torch.manual_seed(0)
    base = ViT('vit_tiny_patch16_224', image_size=32, **SIZES)
    weights = save_base(base, tmp_path / 'base.safetensors')
    return {**PRETRAIN, 'init_args': {**PRETRAIN['init_args'], 'weights': weights}}


@pytest.fixture
def run(tmp_path):
    """Run a command on a model and a data module; return the folder that it filled."""

    def call(command, model, name, **arguments):
        folder = tmp_path / 'runs' / str(len([*tmp_path.glob('runs/*')]))
        logger = {'save_dir': str(folder), 'name': '', 'version': ''}
        config = {
            'trainer': TRAINER
            | {
                'default_root_dir': str(folder),
                'logger': {
                    'class_path': 'lightning.pytorch.loggers.CSVLogger',
                    'init_args': logger,
                },
            },
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
        return folder

    return call


def logged(folder):
    """Return the last value of each metric that a run wrote."""
    with (folder / 'metrics.csv').open() as file:
        rows = [*csv.DictReader(file)]
    return {name: float(text) for row in rows for name, text in row.items() if text}


def checkpoint(folder):
    """Return the last checkpoint of a run, which took one step, and its path."""
    path = max(folder.rglob('*.ckpt'), key=lambda path: path.stat().st_mtime_ns)
    content = torch.load(path, weights_only=True)
    assert content['global_step'] == 1
    return content, path


def check_pretrained(folder, model, batch_size=4):
    """Check what a pre-training run leaves: metrics, a checkpoint, and a delta.

    Returns:
        What the delta says of itself.
    """
    assert math.isfinite(logged(folder)['loss'])
    content, path = checkpoint(folder)
    delta = folder / 'delta.safetensors'
    tensors = load_file(delta)
    beside = load_file(path.with_suffix('.safetensors'))
    assert tensors.keys() == beside.keys()
    assert all(torch.equal(tensors[key], beside[key]) for key in tensors)
    # The checkpoint holds the same delta, and not the base.
    stored = content['state_dict']
    for key, tensor in tensors.items():
        assert any(
            name.endswith(f'.{key}') and torch.equal(tensor, value)
            for name, value in stored.items()
        ), key
    assert not any('student.blocks.0.attn.proj.weight' in name for name in stored)

    metadata = read_delta_metadata(delta)
    assert metadata['steps'] == '1'
    assert metadata['effective_batch'] == str(batch_size)
    weights = model['init_args']['weights']
    backbone = rebuild(delta, weights)
    base = load_file(weights)
    found = delta_state_dict(backbone)
    assert all(torch.equal(found[key], value) for key, value in tensors.items())
    # The step changed what trains.
    assert any(not torch.equal(base[key], found[key]) for key in base.keys() & found)
    return metadata


def check_fitted(folder, head, num_classes, channels=3):
    """Check what training a classifier leaves: losses, and a checkpoint of its size."""
    metrics = logged(folder)
    assert math.isfinite(metrics['train_loss'])
    assert math.isfinite(metrics['val_loss'])
    state = checkpoint(folder)[0]['state_dict']
    assert len(state[f'{head}.weight']) == num_classes
    convolutions = [value for value in state.values() if value.ndim == 4]
    assert convolutions[0].shape[1] == channels


def check_tested(folder):
    """Check that a test wrote its metrics, and nothing of training."""
    metrics = logged(folder)
    assert math.isfinite(metrics['test_loss'])
    assert not any(name.startswith(('train', 'val')) for name in metrics)
    assert not [*folder.rglob('*.ckpt')]


def test_fmow_rgb(fake, run, pretrain, tmp_path):
    root = fake('fmow').write_fmow(tmp_path)
    name, arguments = 'FMoWRGBDataModule', {'root': root, 'batch_size': 4, 'size': 32}
    check_pretrained(run('fit', pretrain, name, **arguments), pretrain)
    for crop in ('box', 'image'):
        arguments['crop'] = crop
        check_fitted(run('fit', classify(62), name, **arguments), 'model.fc', 62)
        check_tested(run('test', classify(62), name, **arguments))


def test_fmow_sentinel(fake, run, pretrain, tmp_path):
    root = fake('fmow_sentinel').write_fmow_sentinel(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    name = 'FMoWSentinelDataModule'
    rgb = ['B04', 'B03', 'B02']
    check_pretrained(run('fit', pretrain, name, bands=rgb, **arguments), pretrain)
    model = classify(62, 13)
    check_fitted(run('fit', model, name, **arguments), 'model.fc', 62, channels=13)
    check_tested(run('test', model, name, **arguments))


def test_scenes(fake, run, pretrain, tmp_path):
    """From a folder of overlapping scenes in two zones to a delta, by one command."""
    root = fake('scenes').write_scenes(tmp_path / 'scenes')
    arguments = {'paths': root, 'batch_size': 4, 'size': 32, 'length': 8}
    name = 'ScenesDataModule'
    check_pretrained(run('fit', pretrain, name, **arguments), pretrain)
    check_pretrained(
        run('fit', pretrain, name, crs='EPSG:32632', **arguments), pretrain
    )
    folder = run('predict', pretrain, name, **arguments)
    table = parquet.read_table(next(folder.rglob('*.parquet')))
    assert len(table) > 0
    assert len(table['embedding'][0]) == SIZES['embed_dim']


def test_camelyon17(fake, run, pretrain, tmp_path):
    root = fake('wilds').write_camelyon17(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    name = 'Camelyon17DataModule'
    folder = run('fit', pretrain, name, train_split='train_unlabeled', **arguments)
    check_pretrained(folder, pretrain)
    check_fitted(run('fit', classify(2), name, **arguments), 'model.fc', 2)
    check_tested(run('test', classify(2), name, **arguments))


def test_iwildcam(fake, run, pretrain, tmp_path):
    root = fake('wilds').write_iwildcam(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    name = 'IWildCamDataModule'
    check_pretrained(run('fit', pretrain, name, **arguments), pretrain)
    check_fitted(run('fit', classify(182), name, **arguments), 'model.fc', 182)
    check_tested(run('test', classify(182), name, **arguments))


def test_globalwheat(fake, run, pretrain, tmp_path):
    root = fake('wilds').write_globalwheat(tmp_path)
    detect = {
        'class_path': 'torchgeo.tasks.ObjectDetection',
        'init_args': {'model': 'fcos', 'backbone': 'resnet18', 'num_classes': 2},
    }
    arguments = {'root': root, 'batch_size': 2, 'size': 64}
    name = 'GlobalWheatDataModule'
    folder = run('fit', pretrain, name, train_split='extra_unlabeled', **arguments)
    check_pretrained(folder, pretrain, batch_size=2)
    folder = run('fit', detect, name, **arguments)
    metrics = logged(folder)
    assert math.isfinite(metrics['bbox_regression'])
    assert 0 <= metrics['val_map_50'] <= 1
    state = checkpoint(folder)[0]['state_dict']
    assert len(state['model.head.classification_head.cls_logits.bias']) == 2
    metrics = logged(run('test', detect, name, **arguments))
    assert 0 <= metrics['test_map_50'] <= 1


def test_csv_file(run, pretrain, tmp_path):
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
    folder = run('fit', pretrain, name, columns=columns, val_split=None, **arguments)
    check_pretrained(folder, pretrain)
    arguments['columns'] = columns | {'label': 'kind', 'split': 'part'}
    for command in ('fit', 'test', 'predict'):
        run(command, classify(2), name, **arguments)
    neighbours = {
        'class_path': 'torchgeo_explora.tasks.ExploraKNNTask',
        'init_args': {
            **{key: pretrain['init_args'][key] for key in ('model', 'model_args')},
            'weights': None,
            'image_size': 32,
            'k': [2],
        },
    }
    run('test', neighbours, name, **arguments)


def test_naip(fake, run, pretrain, tmp_path):
    root = fake('naip').write_naip(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    name = 'NAIPLandCoverDataModule'
    check_pretrained(run('fit', pretrain, name, **arguments), pretrain)
    check_fitted(run('fit', classify(66), name, **arguments), 'model.fc', 66)
    check_tested(run('test', classify(66), name, **arguments))


MASKED = {
    'class_path': 'torchgeo_explora.tasks.ExploraMAETask',
    'init_args': {
        'rank': 4,
        'objective': {
            'decoder_dim': 48,
            'decoder_depth': 1,
            'decoder_heads': 2,
            'decoder_time_dim': 12,
            'decoder_channel_dim': 8,
        },
    },
}


def masked(backbone, weights, **arguments):
    """Return M-ExPLoRA of a backbone by its class path, on a base that is a file."""
    given = {'model': backbone, 'weights': weights, **arguments}
    return {**MASKED, 'init_args': {**MASKED['init_args'], **given}}


def test_fmow_temporal(fake, run, tmp_path):
    """M-ExPLoRA of SatMAE's temporal backbone, on series with their times."""
    sizes = {**SIZES, 'image_size': 32, 'embed_dim': 48, 'time_embed_dim': 12}
    backbone = {
        'class_path': 'torchgeo_explora.models.TemporalViT',
        'init_args': sizes,
    }
    weights = save_base(TemporalViT(**sizes), tmp_path / 'base.safetensors')
    model = masked(backbone, weights)
    root = fake('fmow').write_fmow(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    name = 'FMoWTemporalDataModule'
    for legacy in (False, True):
        folder = run('fit', model, name, legacy_sampling=legacy, **arguments)
        metadata = check_pretrained(folder, model)
        assert metadata['backbone'].endswith('TemporalViT')
    classify = {
        'class_path': 'torchgeo_explora.tasks.ExploraClassificationTask',
        'init_args': {'model': backbone, 'weights': weights, 'num_classes': 62},
    }
    folder = run('fit', classify, name, **arguments)
    assert math.isfinite(logged(folder)['train_loss'])
    assert len(checkpoint(folder)[0]['state_dict']['head.linear.weight']) == 62
    check_tested(run('test', classify, name, **arguments))


def test_fmow_sentinel_by_spectral_groups(fake, run, tmp_path):
    """M-ExPLoRA of SatMAE's group-channel backbone, bands chosen by name."""
    groups = [
        ['B02', 'B03', 'B04', 'B08'],
        ['B05', 'B06', 'B07', 'B8A'],
        ['B11', 'B12'],
    ]
    sizes = {**SIZES, 'image_size': 32, 'embed_dim': 48, 'channel_embed_dim': 16}
    arguments = {**sizes, 'groups': groups}
    backbone = {
        'class_path': 'torchgeo_explora.models.GroupChannelViT',
        'init_args': arguments,
    }
    weights = save_base(GroupChannelViT(**arguments), tmp_path / 'base.safetensors')
    model = masked(backbone, weights, quantize=True)
    root = fake('fmow_sentinel').write_fmow_sentinel(tmp_path)
    arguments = {'root': root, 'batch_size': 4, 'size': 32}
    metadata = check_pretrained(
        run('fit', model, 'FMoWSentinelDataModule', **arguments), model
    )
    assert metadata['arguments']['groups'] == groups


def test_prepared(fake, run, pretrain, tmp_path):
    root = fake('fmow').write_fmow(tmp_path)
    for split in ('train', 'val'):
        raw = FMoWRGB(root, split, size=32)
        prepare(raw, tmp_path / 'out' / split, samples_per_shard=2, progress=False)
    arguments = {'root': tmp_path / 'out', 'batch_size': 4}
    name = 'PreparedDataModule'
    check_pretrained(run('fit', pretrain, name, stream=4, **arguments), pretrain)
    check_fitted(run('fit', classify(62), name, **arguments), 'model.fc', 62)
    check_tested(run('test', classify(62), name, test_split='val', **arguments))
