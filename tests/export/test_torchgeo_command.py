"""TorchGeo's own command on exported files, and three stages through files alone."""

import csv
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import register_model
from torch.testing import assert_close
from torchgeo.main import main

from torchgeo_explora import ExploraWeights
from torchgeo_explora.cli import main as explora
from torchgeo_explora.models import ViT
from torchgeo_explora.models.checkpoints import from_torchgeo

pytestmark = [pytest.mark.cli, pytest.mark.filterwarnings('ignore')]

MODEL = 'explora_tiny_stages'
STOCK = 'torchgeo.tasks.Classification'
MEAN, STD = [0.4, 0.45, 0.5], [0.2, 0.25, 0.3]


@register_model
def explora_tiny_stages(pretrained=False, **options):
    """What every stage builds: the architecture of the release in small."""
    sizes = {'embed_dim': 24, 'depth': 3, 'num_heads': 2, 'patch_size': 8}
    options = {'img_size': 32, 'init_values': 1.0, **sizes, **options}
    return timm.create_model('vit_tiny_patch16_224', **options)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three classes of noise that differ in colour."""
    root = tmp_path_factory.mktemp('images')
    random = np.random.default_rng(0)
    for split, count in (('train', 16), ('val', 8), ('test', 16)):
        for channel in range(3):
            place = root / split / f'class_{channel}'
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 160, (32, 32, 3))
                pixels[..., channel] += random.integers(0, 90)
                Image.fromarray(pixels.astype('uint8')).save(place / f'{number}.png')
    return root


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """Weights of the base as a file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = explora_tiny_stages(num_classes=0).state_dict()
    path = tmp_path_factory.mktemp('base') / 'base.safetensors'
    save_file(state, path)
    return path


def command(name, place, task, arguments, data, *given, **trainer):
    """Run `torchgeo NAME` on a configuration, and return what it logged last."""
    checkpoint = 'lightning.pytorch.callbacks.ModelCheckpoint'
    kept = {'dirpath': str(place), 'save_last': True}
    config = {
        'trainer': {
            'accelerator': 'cpu',
            'default_root_dir': str(place),
            'logger': {
                'class_path': 'lightning.pytorch.loggers.CSVLogger',
                'init_args': {'save_dir': str(place), 'name': name},
            },
            'log_every_n_steps': 1,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'callbacks': [{'class_path': checkpoint, 'init_args': kept}],
            **trainer,
        },
        'model': {'class_path': task, 'init_args': arguments},
        'data': {
            'class_path': 'torchgeo_explora.datamodules.ImageFolderDataModule',
            'init_args': {'batch_size': 16, **data},
        },
    }
    place.mkdir(exist_ok=True)
    path = place / 'config_in.yaml'
    path.write_text(yaml.safe_dump(config))
    main([name, '--config', str(path), *map(str, given)])
    (log,) = place.glob(f'{name}/*/metrics.csv')
    with log.open() as file:
        return [*csv.DictReader(file)][-1]


@pytest.fixture(scope='module')
def delta(base, folder, tmp_path_factory):
    """The first stage: a delta that pre-training wrote."""
    place = tmp_path_factory.mktemp('first')
    arguments = {
        'model': MODEL,
        'weights': str(base),
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
        'base_lr': 0.05,
        'mean': MEAN,
        'std': STD,
    }
    task = 'torchgeo_explora.tasks.ExploraDinoTask'
    command('fit', place, task, arguments, {'root': str(folder)}, max_steps=4)
    return place / 'last.safetensors'


def test_stock_command_fine_tunes_from_an_exported_file(base, delta, folder, tmp_path):
    given = ['--weights', str(base)]
    path = str(tmp_path / 'backbone.ckpt')
    explora(['export', str(delta), path, '--format', 'torchgeo', *given])
    arguments = {
        'model': MODEL,
        'weights': path,
        'num_classes': 3,
        'freeze_backbone': True,
        'lr': 0.1,
    }
    data = {'root': str(folder)}
    command('fit', tmp_path / 'run', STOCK, arguments, data, max_epochs=1)
    saved = torch.load(tmp_path / 'run' / 'last.ckpt', weights_only=True)
    found, rest = from_torchgeo(saved)
    assert rest['head.weight'].abs().max() > 0.01
    explora(['merge', str(delta), str(tmp_path / 'plain.safetensors'), *given])
    assert_close(found, load_file(tmp_path / 'plain.safetensors'), rtol=0, atol=0)


def test_three_stages_through_files_alone(base, delta, folder, tmp_path, capsys):
    first = tmp_path / 'first.safetensors'
    first.write_bytes(delta.read_bytes())
    tune = {
        'model': MODEL,
        'weights': str(base),
        'delta': str(first),
        'image_size': 32,
        'num_classes': 3,
        'pooling': 'cls',
        'label_smoothing': 0.0,
        'rank': 4,
        'drop_path': 0.0,
        'base_lr': 0.5,
    }
    task, data = (
        'torchgeo_explora.tasks.ExploraClassificationTask',
        {'root': str(folder)},
    )
    second = tmp_path / 'second'
    command('fit', second, task, tune, data, max_epochs=8)
    last = second / 'last.ckpt'
    saved = torch.load(last, weights_only=True)
    # Neither the base nor the first delta is stored again.
    whole = sum(p.numel() for p in ViT(MODEL).parameters())
    assert sum(t.numel() for t in saved['state_dict'].values()) < 0.2 * whole
    ours = command('test', tmp_path / 'ours', task, tune, data, '--ckpt_path', last)

    merged = tmp_path / 'merged.ckpt'
    explora(['export', str(last), str(merged), '--format', 'torchgeo'])
    assert f'model: {MODEL}, weights: {merged}' in capsys.readouterr().out
    # Nothing of the package's own is needed any more but the model's name.
    first.unlink()
    low = [255 * mean for mean in MEAN]
    high = [255 * (mean + std) for mean, std in zip(MEAN, STD, strict=True)]
    arguments = {'model': MODEL, 'num_classes': 3}
    stock = command(
        'test',
        tmp_path / 'stock',
        STOCK,
        arguments,
        {**data, 'value_range': [low, high]},
        '--ckpt_path',
        merged,
    )
    for metric in ('test_OverallAccuracy', 'test_AverageAccuracy'):
        assert abs(float(ours[metric]) - float(stock[metric])) <= 1e-6
    assert abs(float(ours['test_loss']) - float(stock['test_loss'])) < 1e-5
    assert float(ours['test_OverallAccuracy']) > 0.6


@pytest.fixture
def published(tmp_path, monkeypatch, base):
    """`FMOW_RGB` in small: a file in the authors' format behind a local server."""
    weights = ExploraWeights.FMOW_RGB
    name = weights.url.rpartition('/')[2]
    (tmp_path / 'served').mkdir()
    content = {**load_file(base), 'mask_token': torch.zeros(1, 24)}
    torch.save({'model': content}, tmp_path / 'served' / name)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Handler, directory=tmp_path / 'served')
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{http.server_address[1]}/{name}'
        monkeypatch.setattr(weights.value, 'url', url)
        monkeypatch.setitem(weights.meta, 'model', MODEL)
        monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
        yield weights
        http.shutdown()


def test_stock_command_fine_tunes_from_the_enum(published, base, folder, tmp_path):
    arguments = {
        'model': MODEL,
        'weights': str(published),
        'num_classes': 3,
        'freeze_backbone': True,
        'lr': 0.1,
    }
    data = {'root': str(folder)}
    command('fit', tmp_path / 'run', STOCK, arguments, data, max_epochs=1)
    saved = torch.load(tmp_path / 'run' / 'last.ckpt', weights_only=True)
    found, rest = from_torchgeo(saved)
    assert_close(found, load_file(base), rtol=0, atol=0)
    assert rest['head.weight'].abs().max() > 0.01
    assert [*(tmp_path / 'hub' / 'checkpoints').iterdir()]
