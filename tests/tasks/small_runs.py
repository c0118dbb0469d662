"""TorchGeo's own command on a small ViT, for the tests of downstream tasks."""

from contextlib import contextmanager

import pytest
import yaml
from torchgeo.main import main

VIT = {
    'model': 'vit_tiny_patch16_224',
    'weights': None,
    'image_size': 32,
    'model_args': {'patch_size': 8, 'embed_dim': 24, 'depth': 4, 'num_heads': 2},
}


def write_config(place, task, model, data, callbacks=(), **trainer):
    """Write a configuration whose run keeps everything in *place*."""
    checkpoint = {
        'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint',
        'init_args': {'dirpath': str(place), 'save_last': True, 'filename': 'epoch'},
    }
    config = {
        'trainer': {
            'accelerator': 'cpu',
            'max_epochs': 2,
            'logger': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'default_root_dir': str(place),
            'callbacks': [checkpoint, *callbacks],
            **trainer,
        },
        'model': {
            'class_path': f'torchgeo_explora.tasks.{task}',
            'init_args': {**VIT, **model},
        },
        'data': data,
    }
    path = place / 'config_in.yaml'
    path.write_text(yaml.safe_dump(config))
    return str(path)


def command(name, config, checkpoint=None):
    """Run `torchgeo NAME --config CONFIG`."""
    given = ['--ckpt_path', str(checkpoint)] if checkpoint else []
    main([name, '--config', config, *given])


def images(folder, **arguments):
    """Return the data part of a configuration for a folder of images."""
    return {
        'class_path': 'torchgeo_explora.datamodules.ImageFolderDataModule',
        'init_args': {'root': str(folder), 'batch_size': 8, **arguments},
    }


@contextmanager
def stopped_at(task, step):
    """Interrupt a run after an optimizer step, as a power cut does."""

    def cut(self, outputs, batch, batch_idx):
        if self.trainer.global_step == step:
            raise RuntimeError('power cut')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, 'on_train_batch_end', cut)
        with pytest.raises(RuntimeError, match='power cut'):
            yield
