"""Paths that a user gives, and everything that takes one."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from torchgeo_explora.callbacks import EmbeddingWriter, MaskWriter, RasterWriter
from torchgeo_explora.callbacks.figures import save_figure
from torchgeo_explora.datamodules import (
    ImageFolderDataModule,
    RasterSceneDataModule,
    ScenesDataModule,
)
from torchgeo_explora.export import embed, map_scenes, search
from torchgeo_explora.paths import expanded, require_writable
from torchgeo_explora.tasks.downstream.options import DownstreamOptions
from torchgeo_explora.tasks.pretraining.base import PretrainingOptions


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another one as working directory."""
    (tmp_path / 'home').mkdir()
    (tmp_path / 'work').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('RUN', 'seven')
    monkeypatch.chdir(tmp_path / 'work')
    return tmp_path / 'home'


def test_home_and_environment_are_replaced(home):
    assert expanded('~/a/$RUN') == f'{home}/a/seven'
    assert expanded('${RUN}/b') == 'seven/b'
    for same in ('a/b', '/a', 's3://bucket/~/a', '$UNKNOWN/a', 'vit.dino'):
        assert expanded(same) == same
    assert expanded(Path('~')) == str(home)


def test_folder_that_cannot_be_written_is_named(tmp_path):
    assert require_writable(tmp_path / 'a' / 'b').is_dir()
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=r'file/run cannot be created .*choose another'):
        require_writable(tmp_path / 'file' / 'run')
    if os.getuid():
        (tmp_path / 'a').chmod(0o500)
        with pytest.raises(PermissionError, match='cannot be written to'):
            require_writable(tmp_path / 'a')


class One:
    """What a writer asks of a trainer."""

    global_rank, world_size, is_global_zero, global_step, loggers = 0, 1, True, 0, ()

    def __init__(self, folder):
        self.default_root_dir, self.strategy = folder, self

    def barrier(self, name):
        """Wait for nobody."""


def test_embeddings_in_the_home_folder_are_there(home):
    """They were written there and looked for elsewhere."""
    writer, trainer = EmbeddingWriter('~/$RUN/e.parquet'), One('.')
    writer.on_predict_start(trainer, None)
    writer.write_on_batch_end(trainer, None, torch.ones(1, 3), [0], {}, 0, 0)
    writer.on_predict_end(trainer, None)
    assert len(pq.read_table(home / 'seven' / 'e.parquet')) == 1
    assert not [*Path().iterdir()]


def test_embeddings_that_cannot_be_written_stop_at_the_start(home):
    (home / 'file').touch()
    writer = EmbeddingWriter('~/file/e.parquet')
    with pytest.raises(OSError, match='file cannot be created'):
        writer.on_predict_start(One('.'), None)
    writer = EmbeddingWriter(home)
    with pytest.raises(IsADirectoryError, match='is a folder: give the name of a file'):
        writer.on_predict_start(One('.'), None)


@pytest.mark.parametrize('writer', [EmbeddingWriter, MaskWriter, RasterWriter])
def test_predictions_are_not_written_to_another_machine(home, writer):
    """They were written here, into a folder named like the address."""
    run = One('memory://explora/run')
    with pytest.raises(ValueError, match=rf'\*path\* of {writer.__name__}'):
        writer().setup(run, None, 'predict')
    with pytest.raises(ValueError, match=r'\*path\* s3://b/a is on another machine'):
        writer('s3://b/a')
    given = writer(home / 'here' / 'result')
    given.find_target(run)
    assert given.target.parent.is_dir()
    assert not [*Path().iterdir()]


def test_results_of_commands_are_not_written_to_another_machine(home):
    address = 's3://bucket/result'
    for command in (
        lambda: embed('images', address, 'vit_tiny_patch16_224'),
        lambda: map_scenes('scene.tif', address, 'vit_tiny_patch16_224'),
        lambda: search('embeddings.parquet', '9,45', address),
    ):
        with pytest.raises(ValueError, match=r'\*output\* .* is on another machine'):
            command()
    assert not [*Path().iterdir()]


def test_every_path_argument_is_expanded(home):
    assert RasterWriter('~/a.tif').path == home / 'a.tif'
    assert ImageFolderDataModule('~/images').root == f'{home}/images'
    assert RasterSceneDataModule('~/a.tif').path == f'{home}/a.tif'
    assert PretrainingOptions(weights='~/a.pth').weights == f'{home}/a.pth'
    assert PretrainingOptions(weights=True).weights is True
    options = DownstreamOptions(model='m', delta='~/$RUN.safetensors')
    assert options.delta == f'{home}/seven.safetensors'
    scenes = ScenesDataModule(['~/a', '$RUN/*.tif'])
    assert scenes.paths == [f'{home}/a', 'seven/*.tif']
    for module in (ImageFolderDataModule, ScenesDataModule):
        assert module('a', index_dir='~/index').kwargs['index_dir'] == f'{home}/index'
    save_figure(Figure(), 'curves', One('.'), '~/run')
    assert (home / 'run' / 'curves.png').exists()


def test_run_into_a_folder_that_cannot_be_written_stops_at_the_start(
    tmp_path, tiny_images
):
    from tests.tasks.conftest import TINY
    from torchgeo_explora.tasks import ExploraDinoTask

    (tmp_path / 'file').touch()
    trainer = Trainer(
        accelerator='cpu',
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path / 'file',
    )
    with pytest.raises(OSError, match='file cannot be created'):
        trainer.fit(ExploraDinoTask(**TINY), ImageFolderDataModule(tiny_images))
