"""Recipes of D-ExPLoRA: what they set, when `auto` chooses which, and resuming."""

import pytest
import torch
from lightning.pytorch import Trainer

from torchgeo_explora.adapt import read_delta_metadata
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.objectives import DINOv2Options
from torchgeo_explora.tasks import ExploraDinoTask

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture
def plain_tiny(tiny):
    """A small task whose head and rate are left at their defaults."""
    del tiny['objective'], tiny['base_lr']
    return tiny


def fit(task, place, folder, steps, planned=None, **more):
    trainer = Trainer(
        accelerator='cpu',
        max_steps=planned or steps,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place,
        **more,
    )
    trainer.fit(task, ImageFolderDataModule(folder, batch_size=8, size=32))
    return trainer


def test_short_sets_what_was_left_at_the_default(plain_tiny):
    task = ExploraDinoTask(recipe='short', **plain_tiny)
    options = task.objective.options
    assert (options.prototypes, options.bottleneck_dim) == (512, 64)
    assert options.momentum == (0.9, 1.0)
    assert task.options.base_lr == 2e-2
    given = {'objective': {'prototypes': 64}, 'base_lr': 0.5}
    task = ExploraDinoTask(recipe='short', **plain_tiny | given)
    assert task.objective.options.prototypes == 64
    assert task.objective.options.momentum == (0.9, 1.0)
    assert task.options.base_lr == 0.5
    assert task.hparams['objective']['prototypes'] == 64


def test_the_paper_is_the_default_and_auto_decides_at_the_start(plain_tiny):
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    for recipe in ({}, {'recipe': 'paper'}, {'recipe': 'auto'}):
        task = ExploraDinoTask(**recipe, **plain_tiny)
        paper = DINOv2Options(prototypes=32, hidden_dim=16)
        assert task.objective.options == paper
        assert task.options.base_lr == 1e-3


def test_auto_takes_short_below_2000_steps_and_a_checkpoint_remembers(
    plain_tiny, folder, tmp_path, capsys
):
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    torch.manual_seed(0)
    task = ExploraDinoTask(recipe='auto', **plain_tiny)
    trainer = fit(task, tmp_path, folder, 2)
    assert task.hparams['recipe'] == 'short'
    options = task.objective.options
    assert (options.prototypes, options.bottleneck_dim) == (32, 64)
    assert options.momentum == (0.9, 1.0)
    assert task.lr == pytest.approx(2e-2 * (8 / 1024) ** 0.5)
    assert 'recipe short (2 optimizer steps planned' in task.summary()
    trainer.save_checkpoint(tmp_path / 'run.ckpt')
    torch.manual_seed(0)  # the base is random
    again = ExploraDinoTask.load_from_checkpoint(tmp_path / 'run.ckpt')
    assert again.recipe == 'short'
    for name, tensor in again.objective.head.state_dict().items():
        assert torch.equal(tensor, task.objective.head.state_dict()[name])
    assert read_delta_metadata(tmp_path / 'delta.safetensors')['steps'] == '2'


def test_auto_takes_the_paper_for_long_runs(plain_tiny, folder, tmp_path):
    plain_tiny['objective'] = {
        'prototypes': 32,
        'hidden_dim': 16,
        'bottleneck_dim': 8,
    }
    task = ExploraDinoTask(recipe='auto', **plain_tiny)

    fit(task, tmp_path, folder, 2, planned=2000, max_time={'seconds': 0})
    assert task.hparams['recipe'] == 'paper'
    assert task.objective.options.momentum == DINOv2Options().momentum
    assert 'recipe paper (2000 optimizer steps planned' in task.summary()


def test_another_recipe_is_refused(plain_tiny):
    with pytest.raises(ValueError, match=r"\*recipe\* is 'long': choose from"):
        ExploraDinoTask(recipe='long', **plain_tiny)
