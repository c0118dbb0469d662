"""Recipes of D-ExPLoRA: what they set, when `auto` chooses which, and resuming."""

import contextlib
import inspect

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from torchgeo_explora.adapt import count, load_delta, lora, read_delta_metadata
from torchgeo_explora.adapt.delta import delta_state_dict
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import ViT
from torchgeo_explora.objectives import DINOv2Options
from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.pretraining.recipe import planned_length, shortened

TINY = 192


class Stop(Exception):
    """Ends a run that has a least length."""


class Stopper(Callback):
    def on_train_start(self, *_):
        raise Stop


pytestmark = pytest.mark.filterwarnings('ignore')


class StopAfter(Callback):
    """Ends a long run after some optimizer steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


@pytest.fixture
def plain_tiny(tiny):
    """A small task whose head and rate are left at their defaults."""
    del tiny['recipe'], tiny['objective'], tiny['base_lr']
    return tiny


@pytest.fixture
def undescribed(plain_tiny):
    """A small task whose adapter is left at its default, too."""
    del plain_tiny['rank']
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    return plain_tiny


def new(arguments, **more):
    """Return a task on the same random base as any other."""
    torch.manual_seed(0)
    return ExploraDinoTask(**arguments | more)


def kept(module):
    """Return a copy of what a checkpoint of a module would hold."""
    return {name: value.clone() for name, value in delta_state_dict(module).items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def outputs(task, *parts):
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    task.objective.student.eval()
    with torch.no_grad():
        found = [getattr(task.objective, part)(image).cls.clone() for part in parts]
    task.objective.train()
    return found


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
    [(100, 0.8, 5e-3), (400, 0.9, 1.56 / 400), (1600, 0.975, 1.56 / 1600)],
)
def test_short_sets_what_was_left_at_the_default(steps, momentum, rate):
    options, lr = shortened(DINOv2Options(), None, steps, TINY)
    assert (options.prototypes, options.bottleneck_dim) == (512, 64)
    assert options.whiten_head
    assert options.momentum == (momentum, 1.0)
    assert lr == rate
    given = DINOv2Options(prototypes=64, momentum=(0.5, 1.0))
    options, lr = shortened(given, 0.5, steps, 4 * TINY)
    assert (options.prototypes, options.momentum, lr) == (64, (0.5, 1.0), 0.5)
    assert options.bottleneck_dim == 64


@pytest.mark.parametrize(
    ('width', 'factor'), [(96, 1), (TINY, 1), (384, 1 / 4), (768, 1 / 16)]
)
def test_the_rate_falls_with_the_square_of_the_width(width, factor):
    for steps in (100, 400):
        _, tiny = shortened(DINOv2Options(), None, steps, TINY)
        _, lr = shortened(DINOv2Options(), None, steps, width)
        assert lr == tiny * factor


def test_a_wide_base_gets_its_own_rate(plain_tiny, folder, tmp_path):
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    plain_tiny['model_args'] = plain_tiny['model_args'] | {'embed_dim': 384}
    task = ExploraDinoTask(recipe='short', **plain_tiny)
    fit(task, tmp_path, folder, 400, max_time={'seconds': 0})
    assert task.options.base_lr == 1.56 / 400 / 4


@pytest.mark.parametrize('rate', [1e-3, 1.56 / 400, 0.5])
def test_a_given_rate_is_kept_whatever_it_is(rate, plain_tiny, folder, tmp_path):
    """Also that of the paper, which is the rate without a recipe."""
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    task = ExploraDinoTask(recipe='short', base_lr=rate, **plain_tiny)
    fit(task, tmp_path, folder, 100, max_time={'seconds': 0})
    assert task.options.base_lr == task.hparams['base_lr'] == rate


def test_a_rate_that_is_left_to_the_recipe_is_none_at_first(plain_tiny):
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    for recipe in ('auto', 'short'):
        assert ExploraDinoTask(recipe=recipe, **plain_tiny).hparams['base_lr'] is None
    assert ExploraDinoTask(recipe='paper', **plain_tiny).hparams['base_lr'] == 1e-3


def test_the_default_is_auto():
    assert inspect.signature(ExploraDinoTask).parameters['recipe'].default == 'auto'


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
    options, _ = shortened(DINOv2Options(), None, 6250, TINY)
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
    task = ExploraDinoTask(recipe='paper', **plain_tiny)
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
    assert task.options.base_lr == 1.56 / 1600
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
    task = ExploraDinoTask(recipe='paper', **plain_tiny)
    trainer = fit(task, tmp_path, folder, 1)
    trainer.save_checkpoint(tmp_path / 'run.ckpt')
    other = Trainer(accelerator='cpu', max_steps=2, logger=False)
    data = ImageFolderDataModule(folder, batch_size=8, size=32)
    with pytest.raises(ValueError, match='with recipe paper, but this run has recipe'):
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
    assert task.options.base_lr == 1.56 / 1200


def test_nothing_is_chosen_before_the_start(plain_tiny):
    plain_tiny['objective'] = {'prototypes': 32, 'hidden_dim': 16}
    for recipe in ({'recipe': 'paper'}, {'recipe': 'auto'}, {'recipe': 'short'}):
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
    assert options.momentum == (0.8, 1.0)
    assert task.lr == pytest.approx(5e-3 * (8 / 1024) ** 0.5)
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


# The LoRA of a run that was given none ------------------------------------------------

# LoRA of rank 64 on four matrices of 24 x 24 and two of 24 x 96, or on two of 24 x 24,
# in each of two blocks.
SHORT_LORA = 2 * 64 * (4 * 48 + 2 * 120)
PAPER_LORA = 2 * 64 * 2 * 48


def lora_size(task):
    named = delta_state_dict(task.backbone).items()
    return sum(tensor.numel() for name, tensor in named if '.lora_' in name)


def test_a_short_run_takes_the_lora_of_short(undescribed, folder, tmp_path):
    """As if it had been built by `recipe: short`, and no output changes."""
    task, short = new(undescribed), new(undescribed, recipe='short')
    assert (lora_size(task), lora_size(short)) == (PAPER_LORA, SHORT_LORA)
    objective = task.objective
    parts = objective.student, objective.teacher
    before = outputs(task, 'student', 'teacher')
    fit(task, tmp_path, folder, 300, max_time={'seconds': 0})

    assert lora_size(task) == SHORT_LORA
    assert count(objective.student) == count(short.objective.student)
    for found, expected in zip(
        outputs(task, 'student', 'teacher'), before, strict=True
    ):
        assert torch.equal(found, expected)
    # Who holds the backbone or its teacher holds those that train.
    assert (objective.student, objective.teacher) == parts
    assert_same(kept(objective.teacher), kept(objective.student))
    for name in ('student', 'teacher'):
        found, expected = (
            {n: (p.requires_grad, p.dtype) for n, p in part.named_parameters()}
            for part in (getattr(each.objective, name) for each in (task, short))
        )
        assert found == expected
    assert {id(p) for p in objective.student.parameters() if not p.requires_grad} == {
        id(p)
        for p, s in zip(
            objective.teacher.parameters(), objective.student.parameters(), strict=True
        )
        if not s.requires_grad
    }
    assert not any(part.training for part in objective.teacher.modules())
    assert task.adaptation == short.adaptation
    assert task.hparams['adapter'] == short.hparams['adapter']
    assert 'D-[3]-r64: ' in task.summary()
    assert task.summary().endswith(
        'recipe short (300 optimizer steps planned, the limit is 2000)'
    )


@pytest.mark.parametrize('given', [{'rank': 2}, {'alpha': 3}, {'adapter': lora(2, 5)}])
def test_a_described_adapter_stays(undescribed, folder, tmp_path, given):
    task = new(undescribed, **given)
    before = kept(task.objective.student)
    fit(task, tmp_path, folder, 300, max_time={'seconds': 0})
    assert task.recipe == 'short'
    assert_same(kept(task.objective.student), before)
    assert {name: task.hparams[name] is not None for name in given} == dict.fromkeys(
        given, True
    )


def test_no_adapter_stays_none(undescribed, folder, tmp_path):
    task = new(undescribed, rank=0)
    fit(task, tmp_path, folder, 300, max_time={'seconds': 0})
    assert (task.recipe, lora_size(task)) == ('short', 0)


def test_a_long_run_is_the_papers_bit_for_bit(undescribed, folder, tmp_path):
    undescribed['objective']['bottleneck_dim'] = 8
    undescribed['base_lr'] = 0.05
    states, files = [], []
    for recipe in ('paper', 'auto'):
        task = new(undescribed, recipe=recipe)
        place = tmp_path / recipe
        trainer = fit(task, place, folder, 2, planned=2000, callbacks=[StopAfter(3)])
        assert trainer.global_step == 3
        states.append(kept(task))
        files.append(read_delta_metadata(place / 'delta.safetensors'))
        assert task.recipe == files[-1]['recipe'] == 'paper'
    assert_same(*states)
    assert files[0]['delta'] == files[1]['delta']
    assert files[0]['adaptation'] == files[1]['adaptation']
    assert any('.lora_B.' in name and value.any() for name, value in states[0].items())


def test_a_trained_adapter_outlasts_a_second_fit(undescribed, folder, tmp_path):
    """Whatever its length, and what it has learned goes with it."""
    task = new(undescribed)
    fit(task, tmp_path, folder, 2)
    trained = kept(task.backbone)
    assert any('.lora_B.' in name and value.any() for name, value in trained.items())
    fit(task, tmp_path, folder, 300, max_time={'seconds': 0})
    assert_same(kept(task.backbone), trained)
    assert 'stays' not in task.summary()
    trainer = fit(task, tmp_path, folder, 2000, max_time={'seconds': 0})
    assert_same(kept(task.backbone), trained)
    assert task.recipe == 'paper'
    assert 'the LoRA stays as it is: student and teacher differ' in task.summary()
    assert 'D-[3]-r64: ' in task.summary()
    # The file says what there is, not what the recipe has.
    trainer.save_checkpoint(tmp_path / 'run.ckpt')
    torch.manual_seed(0)
    again = ExploraDinoTask.load_from_checkpoint(tmp_path / 'run.ckpt')
    assert again.recipe == 'paper'
    assert_same(kept(again), kept(task))


def test_a_restored_delta_outlasts_a_fit(undescribed, folder, tmp_path):
    """A delta of the paper's LoRA, in a task that is to run for a short time."""
    fit(new(undescribed, recipe='paper'), tmp_path, folder, 2)
    task = new(undescribed)
    for part in (task.objective.student, task.objective.teacher):
        load_delta(part, tmp_path / 'delta.safetensors')
    given = kept(task.backbone)
    fit(task, tmp_path / 'second', folder, 300, max_time={'seconds': 0})
    assert_same(kept(task.backbone), given)
    assert 'the LoRA stays as it is: it has learned something' in task.summary()
    # In the teacher only: the student is to learn from it.
    task = new(undescribed)
    load_delta(task.objective.teacher, tmp_path / 'delta.safetensors')
    fit(task, tmp_path / 'third', folder, 300, max_time={'seconds': 0})
    assert_same(kept(task.backbone), given)
    assert 'student and teacher differ' in task.summary()


def test_a_trial_chooses_for_itself_only(undescribed, folder, tmp_path):
    task = new(undescribed)
    for steps, size, name in (
        (300, SHORT_LORA, 'D-[3]-r64: '),
        (2000, PAPER_LORA, 'D-[3]-r64: '),
        (400, SHORT_LORA, 'D-[3]-r64: '),
    ):
        fit(task, tmp_path, folder, steps, max_time={'seconds': 0})
        assert lora_size(task) == size
        assert name in task.summary()
        assert_same(kept(task.objective.teacher), kept(task.objective.student))


def test_a_short_run_resumes_bit_for_bit(undescribed, folder, tmp_path):
    data = ImageFolderDataModule(folder, batch_size=8, size=32)
    whole = new(undescribed)
    fit(whole, tmp_path / 'whole', folder, 4)
    torch.manual_seed(1)
    part = new(undescribed)
    trainer = fit(
        part, tmp_path / 'part', folder, 2, planned=4, callbacks=[StopAfter(2)]
    )
    trainer.save_checkpoint(tmp_path / 'run.ckpt')
    again = new(undescribed)
    other = Trainer(
        accelerator='cpu',
        max_steps=4,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path / 'again',
    )
    other.fit(again, data, ckpt_path=tmp_path / 'run.ckpt')
    assert again.trainer.global_step == 4
    assert lora_size(again) == SHORT_LORA
    assert_same(kept(again), kept(whole))


def test_a_short_checkpoint_loads_and_predicts(undescribed, folder, tmp_path):
    task = new(undescribed)
    trainer = fit(task, tmp_path, folder, 2)
    trainer.save_checkpoint(tmp_path / 'run.ckpt')
    torch.manual_seed(0)
    again = ExploraDinoTask.load_from_checkpoint(tmp_path / 'run.ckpt')
    assert_same(kept(again), kept(task))
    assert again.adaptation.adapter == task.adaptation.adapter
    # Its adapter counts as given: another length would not exchange it.
    fit(again, tmp_path / 'second', folder, 300, max_time={'seconds': 0})
    assert_same(kept(again), kept(task))
    # The same configuration predicts.
    other = new(undescribed)
    data = ImageFolderDataModule(folder, batch_size=8, size=32)
    rows = trainer.predict(other, data, ckpt_path=tmp_path / 'run.ckpt')
    assert_same(kept(other), kept(task))
    assert other.recipe == 'short'
    expected = trainer.predict(task, data)
    assert torch.equal(torch.cat(rows), torch.cat(expected))


@pytest.mark.parametrize('recipe', ['auto', 'short'])
def test_what_forked_processes_have_trained_is_loaded(undescribed, recipe):
    """Only they know how long the run was (`ddp_notebook`)."""
    task, here = (new(undescribed, recipe=recipe) for _ in range(2))
    task._choose_recipe(300)
    here.load_state_dict(task.state_dict(), strict=False)
    assert here.recipe == 'short'
    assert_same(kept(here), kept(task))
    assert here.hparams['adapter'] == task.hparams['adapter']
    # Another model is refused as ever.
    wide = dict(undescribed) | {'model_args': {'patch_size': 8, 'embed_dim': 48}}
    with pytest.raises(RuntimeError, match='size mismatch'):
        new(undescribed).load_state_dict(new(wide).state_dict(), strict=False)


def test_a_delta_says_what_was_used(undescribed, folder, tmp_path):
    task = new(undescribed)
    fit(task, tmp_path, folder, 2)
    found = read_delta_metadata(tmp_path / 'delta.safetensors')
    assert found['recipe'] == 'short'
    adapter = found['adaptation']['adapter']
    assert (adapter['r'], adapter['lora_alpha']) == (64, 256)
    plain = new(undescribed).objective.student.arguments
    backbone = ViT(**plain)
    backbone.load_state_dict(_base(task))
    load_delta(backbone, tmp_path / 'delta.safetensors')
    assert_same(kept(backbone), kept(task.backbone))


def _base(task):
    """Return the random base under a task made by `new`."""
    arguments = task.objective.student.arguments
    torch.manual_seed(0)
    return ViT(**arguments).state_dict()


def test_a_checkpoint_without_a_recipe_is_the_papers(undescribed, folder, tmp_path):
    """Those of before recipes; heads that have learned are not drawn anew."""
    task = new(undescribed, recipe='paper')
    fit(task, tmp_path, folder, 2).save_checkpoint(tmp_path / 'run.ckpt')
    checkpoint = torch.load(tmp_path / 'run.ckpt', weights_only=True)
    del checkpoint['hyper_parameters']['recipe']
    torch.save(checkpoint, tmp_path / 'old.ckpt')
    torch.manual_seed(0)
    again = ExploraDinoTask.load_from_checkpoint(tmp_path / 'old.ckpt')
    assert again.recipe == 'paper'
    fit(again, tmp_path / 'second', folder, 300, max_time={'seconds': 0})
    assert_same(kept(again), kept(task))


def test_stored_and_recomputed_weights_stay_so(undescribed, folder, tmp_path):
    """With a backbone that was given, an anchor and what the base has nothing for."""
    torch.manual_seed(0)
    arguments = {'image_size': 32, **undescribed.pop('model_args')}
    backbone = ViT(undescribed.pop('model'), **arguments)
    objective = undescribed['objective'] | {'gram_weight': (0.0, 2.0)}
    task = ExploraDinoTask(
        backbone,
        **undescribed | {'objective': objective, 'modules': ('pos_embed',)},
        frozen_dtype='bfloat16',
        checkpointing=True,
    )
    assert task.objective.student is backbone
    fingerprint = backbone.record.fingerprint
    fit(task, tmp_path, folder, 2, precision='bf16-mixed')
    assert lora_size(task) == SHORT_LORA
    assert task.objective.student is backbone
    assert backbone.checkpointing
    assert backbone.record.fingerprint == fingerprint
    assert backbone.record.rounded
    assert backbone.blocks[0].mlp.fc1.base_layer.weight.dtype == torch.bfloat16
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {
        torch.float32
    }
    assert backbone.pos_embed.requires_grad
    anchor = task.objective.anchor
    base = anchor.blocks[0].mlp.fc1.weight
    assert base is backbone.blocks[0].mlp.fc1.base_layer.weight
    assert not any('lora' in name for name, _ in anchor.named_parameters())
    assert not any(name.startswith('objective.anchor') for name in kept(task))


def test_lora_that_does_not_fit_leaves_the_papers(undescribed, folder, tmp_path):
    """Some linear layer of a backbone of yours may not take an adapter."""
    task = new(undescribed)
    task._adapters['short'].target_modules = {'w12'}
    before = outputs(task, 'teacher')
    fit(task, tmp_path, folder, 300, max_time={'seconds': 0})
    assert (task.recipe, lora_size(task)) == ('short', PAPER_LORA)
    assert torch.equal(outputs(task, 'teacher')[0], before[0])
    assert_same(kept(task.objective.teacher), kept(task.objective.student))
    assert 'the LoRA stays as it is: adapter target_modules' in task.summary()
    assert task.hparams['adapter']['r'] == 64
