"""Small whole inputs of every kind, from which the malformed ones are made."""

import contextlib
import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors.torch import save_file

from tests.data.scenes import write_scene, write_stac
from torchgeo_explora.adapt import Adaptation, adapt, lora, save_delta
from torchgeo_explora.callbacks import Curves, Pictures, Reconstructions
from torchgeo_explora.cli import main
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.datasets import CSVDataset, ImageFolder, SceneWindows, prepare
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.pretraining import base as pretraining

MODEL = 'vit_tiny_patch16_224'
SIZES = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}
TASK = {
    'model': MODEL,
    'weights': None,
    'image_size': 32,
    'views': {'local_size': 16, 'local_views': 2},
    'model_args': SIZES,
    'recipe': 'paper',
    'rank': 4,
    'objective': {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8},
    # Large: a short run must move the weights.
    'base_lr': 0.05,
}


def without_pictures():
    """Leave out what a task draws: it takes most of the time of a short run."""
    drawing = (Curves, Pictures, Reconstructions)
    every = pretraining.pretraining_callbacks
    pretraining.pretraining_callbacks = lambda *arguments: [
        callback for callback in every(*arguments) if not isinstance(callback, drawing)
    ]


def make(folder):
    """Write the base, a delta of it, images, a table, prepared data, scenes, items."""
    folder = Path(folder)
    torch.manual_seed(0)
    base = ViT(MODEL, image_size=32, **SIZES)
    state = {k: v.contiguous() for k, v in base.canonical_state_dict().items()}
    save_file(state, folder / 'base.safetensors')
    torch.save(state, folder / 'base.pth')
    backbone = ViT(MODEL, folder / 'base.safetensors', 3, 32, **SIZES)
    adapt(backbone, Adaptation(cls_token=False, adapter=lora(2)))
    save_delta(backbone, folder / 'delta.safetensors', {'note': 'whole'})
    write_images(folder / 'images')
    prepare(ImageFolder(folder / 'images'), folder / 'prepared', samples_per_shard=8)
    rows = [f'train/{n}.png,{n % 2},train' for n in range(16)]
    table = '\n'.join(['path,label,split', *rows]) + '\n'
    (folder / 'images' / 'metadata.csv').write_text(table)
    CSVDataset(folder / 'images')
    write_scene(folder / 'scenes' / 'scene_20200131.tif')
    SceneWindows(folder / 'scenes', size=32, length=4)
    write_stac(folder / 'stac')
    train(folder / 'run', folder / 'images', steps=3)
    # What commands import when they run, the parent can import once for all.
    for words in (
        ('info', folder / 'delta.safetensors', folder / 'run/last.ckpt'),
        (
            'merge',
            folder / 'delta.safetensors',
            folder / 'merged.safetensors',
            '--weights',
            folder / 'base.safetensors',
        ),
        ('verify', folder / 'prepared'),
        ('fit', '--config', folder / 'nothing.yaml'),
    ):
        with contextlib.suppress(SystemExit):
            main([str(word) for word in words])
    (folder / 'modules').write_text('\n'.join(sys.modules))


def write_images(folder, count=16):
    """Write noise of 40 x 40 pixels into `train`."""
    random = np.random.default_rng(0)
    (folder / 'train').mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / 'train' / f'{number}.png')


def train(place, images, steps, *callbacks, checkpoint=None, data=None, **task):
    """Pre-train a small ViT with a checkpoint after each step; return the trainer."""
    seed_everything(0, verbose=False)
    keep = ModelCheckpoint(
        place,
        '{step}',
        auto_insert_metric_name=False,
        every_n_train_steps=1,
        save_top_k=-1,
        save_last=True,
    )
    trainer = Trainer(
        accelerator='cpu',
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place,
        callbacks=[*callbacks, keep],
    )
    data = data or ImageFolderDataModule(os.fspath(images), batch_size=4)
    module = ExploraDinoTask(**copy.deepcopy(TASK | task))
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


def header_of(content):
    """Return the header of a safetensors file as a dictionary, and its data."""
    size = int.from_bytes(content[:8], 'little')
    return json.loads(content[8 : 8 + size]), content[8 + size :]
