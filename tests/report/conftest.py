"""Folders as runs leave them, without a run."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from torchgeo_explora.adapt import Adaptation, adapt, lora, save_delta
from torchgeo_explora.models import ViT

MODEL = 'vit_tiny_patch16_224'
SIZES = {'embed_dim': 16, 'depth': 4, 'num_heads': 2}
METADATA = {
    'objective': 'DINOv2',
    'recipe': 'short',
    'steps': '40',
    'planned_steps': '40',
    'effective_batch': '8',
}
CONFIG = {
    'seed_everything': 0,
    'trainer': {'max_steps': 40, 'precision': 'bf16-mixed', 'default_root_dir': 'x'},
    'model': {
        'class_path': 'torchgeo_explora.tasks.ExploraDinoTask',
        'init_args': {'model': MODEL, 'base_lr': 0.01, 'rank': 2, 'unfreeze': [-1]},
    },
    'data': {
        'class_path': 'torchgeo_explora.datamodules.SyntheticScenesDataModule',
        'init_args': {'num_train': 60},
    },
}
COST = {
    'steps': 40,
    'planned_steps': 40,
    'images': 320,
    'tflop': 12.5,
    'tflop_formula': '2 operations per multiply-add.',
    'wall_seconds': 5400.0,
    'device': 'a chip',
    'devices': 2,
    'device_hours': 3.0,
    'energy_kwh': 0.3,
    'energy_source': 'estimated: device hours x 100 W per device',
    'kg_co2e_per_kwh': 0.4,
    'kg_co2e': 0.12,
}


def write_events(place, knn=(0.25, 0.5, 0.375), shift=0.0):
    writer = SummaryWriter(place)
    for step in range(0, 40, 5):
        writer.add_scalar('loss', 9 - step / 40 + shift, step)
        writer.add_scalar('train/momentum', 0.99 + step / 4000, step)
    for step, value in zip((0, 20, 39), knn, strict=True):
        writer.add_scalar('knn', value, step)
        writer.add_scalar('quality/rankme', 10 + 10 * value, step)
    writer.close()


def write_picture(path, width=60, height=40):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)


@pytest.fixture(scope='session')
def base(tmp_path_factory):
    """The weights of a tiny ViT."""
    path = tmp_path_factory.mktemp('base') / 'base.safetensors'
    torch.manual_seed(0)
    state = ViT(MODEL, image_size=32, **SIZES).canonical_state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope='session')
def adapted_vit(base):
    """The same with a delta that changes every block."""
    torch.manual_seed(1)
    backbone = ViT(MODEL, base, image_size=32, **SIZES)
    adapt(backbone, Adaptation(adapter=lora(2)))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                size = 0.3 if 'lora_B' in name else 0.01
                parameter.add_(size * torch.randn_like(parameter))
    return backbone


@pytest.fixture(scope='session')
def finished(tmp_path_factory, adapted_vit):
    """What a run of 40 steps leaves; it is copied, never changed."""
    folder = tmp_path_factory.mktemp('runs') / 'finished'
    logs = folder / 'lightning_logs' / 'version_0'
    write_events(logs)
    text = '# lightning.pytorch==2.6.6\n' + yaml.safe_dump(CONFIG)
    (logs / 'config.yaml').write_text(text)
    for name in ('crops', 'pca', 'curves', 'own'):
        write_picture(folder / f'{name}.png')
    save_delta(adapted_vit, folder / 'delta.safetensors', METADATA)
    (folder / 'cost.json').write_text(json.dumps(COST))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A finished run that a test may change."""
    return shutil.copytree(finished, tmp_path / 'run')
