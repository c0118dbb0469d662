"""Recipes of D-ExPLoRA: what they set, when `auto` chooses which, and resuming."""

import contextlib

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from torchgeo_explora.adapt import read_delta_metadata
from torchgeo_explora.adapt.delta import delta_state_dict
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.objectives import DINOv2Options
from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.pretraining.recipe import BASE_LR, planned_length, shortened


class Stop(Exception):
    """Ends a run that has a least length."""


class Stopper(Callback):
    def on_train_start(self, *_):
        raise Stop


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


@pytest.mark.parametrize(
    ('steps', 'momentum', 'rate'),
    [(100, 0.8, 1e-2), (400, 0.9, 3.125 / 400), (1600, 0.975, 3.125 / 1600)],
)
def test_short_sets_what_was_left_at_the_default(steps, momentum, rate):
    options, lr = shortened(DINOv2Options(), BASE_LR, steps)
    assert (options.prototypes, options.bottleneck_dim) == (512, 64)
    assert options.whiten_head
    assert options.momentum == (momentum, 1.0)
    assert lr == rate
    given = DINOv2Options(prototypes=64, momentum=(0.5, 1.0))
    options, lr = shortened(given, 0.5, steps)
    assert (options.prototypes, options.momentum, lr) == (64, (0.5, 1.0), 0.5)
    assert options.bottleneck_dim == 64


def test_short_adapts_all_matrices_unless_an_adapter_is_described(plain_tiny):
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    del plain_tiny['rank']
    ends = {'q', 'k', 'v', 'proj', 'fc1', 'fc2'}
    for recipe, given, expected in (
        ('short', {}, ends),
        ('short', {'rank': 2}, {'q', 'v'}),
        ('auto', {}, {'q', 'v'}),
    ):
        task = ExploraDinoTask(recipe=recipe, **plain_tiny | given)
        names = delta_state_dict(task.backbone)
        found = {name.split('.')[3] for name in names if '.lora_A' in name}
        assert found == expected


def test_at_the_papers_length_the_teacher_is_the_papers():
    options, _ = shortened(DINOv2Options(), BASE_LR, 6250)
    assert options.momentum[0] == pytest.approx(DINOv2Options().momentum[0], abs=5e-4)


@pytest.mark.parametrize(
    ('images', 'batch', 'steps'),
    [(500, 64, 400), (5000, 64, 400), (500_000, 64, 7812), (500_000, 1024, 488)],
)
def test_the_length_follows_the_images(images, batch, steps):
    assert planned_length(images / batch) == steps


def test_data_without_a_length():
    for unknown in (float('inf'), -1 / 1000):
        assert planned_length(unknown, min_epochs=3) == 400


def test_min_steps_and_min_epochs_are_heeded(plain_tiny, folder, tmp_path):
    """32 images in batches of 8: 4 steps an epoch."""
    for least, steps in (({'min_epochs': 150}, 600), ({'min_steps': 500}, 500)):
        task = ExploraDinoTask(recipe='auto', **plain_tiny)
        limits = {'max_epochs': 1000, 'max_time': {'seconds': 0}}
        with contextlib.suppress(Stop):
            fit(task, tmp_path, folder, -1, **limits, **least, callbacks=[Stopper()])
        assert task.planned_steps == steps


def test_a_run_without_a_length_gets_one(plain_tiny, folder, tmp_path):
    """And `recipe: paper` leaves Lightning's 1,000 epochs."""
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    task = ExploraDinoTask(recipe='auto', **plain_tiny)
    with pytest.warns(UserWarning, match='400 optimizer steps, instead of the 1000'):
        trainer = fit(
            task, tmp_path, folder, -1, max_epochs=1000, max_time={'seconds': 0}
        )
    assert task.planned_steps == 400
    assert task.recipe == 'short'
    # The trainer is as it was given.
    assert (trainer.max_steps, trainer.max_epochs) == (-1, 1000)
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8}
    task = ExploraDinoTask(**plain_tiny)
    fit(task, tmp_path, folder, -1, max_epochs=1000, max_time={'seconds': 0})
    assert task.planned_steps == 4000


def test_a_second_fit_keeps_the_heads(plain_tiny, folder, tmp_path):
    """And what was set on the objective before the first one."""
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    task = ExploraDinoTask(recipe='auto', **plain_tiny)
    task.objective.koleo_weight = 0.0
    fit(task, tmp_path, folder, 2)
    assert task.objective.koleo_weight == 0
    assert task.objective.whitened
    trained = task.objective.head.mlp[0].weight.clone()
    fit(task, tmp_path, folder, 3, max_time={'seconds': 0})
    assert torch.equal(task.objective.head.mlp[0].weight, trained)
    # Rate and teacher follow the run at hand.
    fit(task, tmp_path, folder, 1600, max_time={'seconds': 0})
    assert task.objective.momentum == task.objective.options.momentum == (0.975, 1.0)
    assert task.options.base_lr == 3.125 / 1600
    assert torch.equal(task.objective.head.mlp[0].weight, trained)
    # A trial is not the run: its choice is forgotten.
    fit(task, tmp_path, folder, 2000, max_time={'seconds': 0})
    assert task.recipe == 'paper'
    assert task.objective.momentum == DINOv2Options().momentum
    assert not hasattr(task.objective, 'whitened')


def test_heads_of_the_recipes_sizes_stay(plain_tiny, folder, tmp_path):
    """Such as published ones, which must not be drawn anew."""
    plain_tiny['objective'] = {
        'prototypes': 32,
        'hidden_dim': 16,
        'bottleneck_dim': 8,
    }
    task = ExploraDinoTask(recipe='short', **plain_tiny)
    given = task.objective.head.mlp[0].weight.clone()
    fit(task, tmp_path, folder, 2, max_time={'seconds': 0})
    assert torch.equal(task.objective.head.mlp[0].weight, given)
    assert not task.objective.options.whiten_head
    assert task.objective.momentum == (0.8, 1.0)


def test_a_checkpoint_of_another_recipe_is_refused(plain_tiny, folder, tmp_path):
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    trainer = fit(ExploraDinoTask(**plain_tiny), tmp_path, folder, 1)
    trainer.save_checkpoint(tmp_path / 'run.ckpt')
    other = Trainer(accelerator='cpu', max_steps=2, logger=False)
    data = ImageFolderDataModule(folder, batch_size=8, size=32)
    with pytest.raises(ValueError, match='under recipe paper, and this run has recipe'):
        other.fit(
            ExploraDinoTask(recipe='auto', **plain_tiny),
            data,
            ckpt_path=tmp_path / 'run.ckpt',
        )


def test_left_out_batches_do_not_count(plain_tiny, folder, tmp_path):
    """32 images in 4 batches, of which 3 make a step: 1 step an epoch, not 2."""
    task = ExploraDinoTask(recipe='auto', **plain_tiny)
    more = {'max_time': {'seconds': 0}, 'accumulate_grad_batches': 3}
    fit(task, tmp_path, folder, -1, max_epochs=1200, **more)
    assert task.planned_steps == 1200
    assert task.recipe == 'short'
    assert task.options.base_lr == 3.125 / 1200


def test_nothing_is_chosen_before_the_start(plain_tiny):
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    for recipe in ({}, {'recipe': 'auto'}, {'recipe': 'short'}):
        task = ExploraDinoTask(**recipe, **plain_tiny)
        paper = DINOv2Options(prototypes=32, hidden_dim=16)
        assert task.objective.options == paper
        assert task.options.base_lr == BASE_LR


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
    assert options.momentum == (0.8, 1.0)
    assert task.lr == pytest.approx(1e-2 * (8 / 1024) ** 0.5)
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
