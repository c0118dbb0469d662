"""ExploraDinoTask with a real trainer: plan, step, checkpoint, resume."""

import copy
import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import AdaLoraConfig, LoHaConfig
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader, IterableDataset

from torchgeo_explora.adapt import delta_state_dict, load_delta, read_delta_metadata
from torchgeo_explora.callbacks import EmbeddingWriter, OnlineKNN
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import ViT
from torchgeo_explora.models.backbones.backbone import compile_blocks
from torchgeo_explora.tasks import ExploraDinoTask, ExploraMAETask


def _trainer(tmp_path, **kwargs):
    return Trainer(
        **{
            'accelerator': 'cpu',
            'max_steps': 4,
            'logger': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'default_root_dir': tmp_path,
            'callbacks': [ModelCheckpoint(tmp_path, save_last=True)],
        }
        | kwargs
    )


def _task(tiny, **kwargs):
    seed_everything(0)
    return ExploraDinoTask(**(tiny | kwargs))


def _data(folder, batch_size=4):
    return ImageFolderDataModule(folder, batch_size=batch_size)


class Record(Callback):
    """Keep rate, progress and momentum of every optimizer step, and the batches."""

    def __init__(self):
        self.rates, self.progress, self.images = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images.append(batch['index'].tolist())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group['lr'] for group in optimizer.param_groups])
        self.progress.append(pl_module.progress)


class Stop(Callback):
    """Interrupt a run after an optimizer step, without its end."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError('power cut')


def test_run_trains_the_delta_and_leaves_the_base(tmp_path, folder, tiny):
    task = _task(tiny)
    before = copy.deepcopy(task.objective.student.state_dict())
    _trainer(tmp_path).fit(task, _data(folder))
    student = task.objective.student
    delta = delta_state_dict(student).keys()
    after = student.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k not in delta)
    assert any((after[k] != v).any() for k, v in before.items() if k in delta)
    assert not task.objective.teacher.training


def test_summary_speaks_the_papers_language(tmp_path, folder, tiny, caplog):
    caplog.set_level('INFO')
    _trainer(tmp_path, accumulate_grad_batches=2).fit(_task(tiny), _data(folder))
    assert 'D-[3]-r4: ' in caplog.text
    assert 'effective batch 8' in caplog.text
    assert '4 optimizer steps' in caplog.text


@pytest.mark.parametrize(('batch_size', 'accumulated'), [(8, 1), (4, 2), (2, 4)])
def test_micro_batch_changes_no_schedule(
    tmp_path, folder, tiny, batch_size, accumulated
):
    record = Record()
    task = _task(
        tiny,
        schedule={'warmup': 0.5},
        objective={**tiny['objective'], 'freeze_prototypes': 0.25},
    )
    _trainer(tmp_path, callbacks=[record], accumulate_grad_batches=accumulated).fit(
        task, _data(folder, batch_size)
    )
    lr = 0.05 * (8 / 1024) ** 0.5
    expected = [0.0, lr, lr, 1e-6 + (lr - 1e-6) / 2]
    rates = torch.tensor(record.rates)
    torch.testing.assert_close(rates[:, 0], torch.tensor(expected))
    # The prototypes stay still for the first quarter: one step.
    expected[0] = 0.0
    torch.testing.assert_close(rates[:, 1], torch.tensor(expected))
    assert record.progress == [0.0, 0.25, 0.5, 0.75]


def test_teacher_moves_with_the_progress_of_the_steps_forward(
    tmp_path, folder, tiny, monkeypatch
):
    task, forward, after = _task(tiny), [], []
    task.objective.register_forward_pre_hook(
        lambda _, inputs: forward.append(inputs[1])
    )
    monkeypatch.setattr(task.objective, 'after_step', after.append)
    _trainer(tmp_path, accumulate_grad_batches=2).fit(task, _data(folder))
    assert after == [0.0, 0.25, 0.5, 0.75]
    assert forward == [progress for progress in after for _ in range(2)]
    # A run that goes on past its plan has no more progress than 1.
    task.planned_steps = 3
    assert task.progress == 1


def test_embedding_leaves_the_mode_as_it_was(tmp_path, folder, tiny):
    task = _task(tiny)
    _trainer(tmp_path, max_steps=1).fit(task, _data(folder))
    batch = {'image': torch.rand(2, 3, 40, 40) * 255}
    modes = []
    for mode in (True, False):
        task.train(mode)
        task.embed(batch)
        student, teacher = task.objective.student, task.objective.teacher
        modes.append((task.training, student.training, teacher.training))
    assert modes == [(True, True, False), (False, False, False)]


def test_checkpoint_holds_no_base_and_loads_safely(tmp_path, folder, tiny):
    task = _task(tiny)
    _trainer(tmp_path).fit(task, _data(folder))
    checkpoint = torch.load(tmp_path / 'last.ckpt', weights_only=True)
    saved = checkpoint['state_dict']
    assert 'objective.student.blocks.0.mlp.fc1.weight' not in saved
    assert 'objective.teacher.blocks.0.mlp.fc1.weight' not in saved
    assert 'objective.student.blocks.2.mlp.fc1.weight' in saved
    assert 'objective.teacher.blocks.2.mlp.fc1.weight' in saved
    assert not list(tmp_path.glob('.*.part'))


def test_delta_beside_the_checkpoint_is_the_teachers(tmp_path, folder, tiny):
    task = _task(tiny)
    _trainer(tmp_path).fit(task, _data(folder))
    seed_everything(0)
    arguments = task.objective.student.arguments
    plain = ViT(**arguments)
    load_delta(plain, tmp_path / 'last.safetensors')
    image = torch.randn(2, 3, 32, 32)
    task.eval()
    plain.eval()
    torch.testing.assert_close(plain(image), task.backbone(image))


@pytest.mark.parametrize('stop', [3, 5])
def test_resumed_equals_uninterrupted(tmp_path, folder, tiny, stop):
    """8 batches an epoch: step 3 of 2 batches lies in the first, 5 in the second."""
    options = {'max_steps': 6, 'accumulate_grad_batches': 2}

    def checkpoint(place):
        return ModelCheckpoint(place, every_n_train_steps=1, save_last=True)

    whole, resumed = Record(), Record()
    _trainer(
        tmp_path, callbacks=[whole, checkpoint(tmp_path / 'whole')], **options
    ).fit(_task(tiny), _data(folder))

    cut = tmp_path / 'cut'
    with pytest.raises(RuntimeError, match='power cut'):
        _trainer(tmp_path, callbacks=[checkpoint(cut), Stop(stop + 1)], **options).fit(
            _task(tiny), _data(folder)
        )
    last = max(cut.glob('epoch*.ckpt'))
    torch.manual_seed(123)  # the state of a new process
    _trainer(
        tmp_path, callbacks=[resumed, checkpoint(tmp_path / 'resumed')], **options
    ).fit(_task(tiny), _data(folder), ckpt_path=last)

    assert whole.images[-len(resumed.images) :] == resumed.images
    states = [
        torch.load(tmp_path / name / 'last.ckpt', weights_only=True)
        for name in ('whole', 'resumed')
    ]
    assert states[0]['state_dict'].keys() == states[1]['state_dict'].keys()
    for key, value in states[0]['state_dict'].items():
        assert torch.equal(value, states[1]['state_dict'][key]), key
    assert torch.equal(
        states[0]['explora']['generators']['torch'],
        states[1]['explora']['generators']['torch'],
    )


def test_epochs_have_their_own_order(tmp_path, folder, tiny):
    record = Record()
    _trainer(tmp_path, callbacks=[record], max_steps=-1, max_epochs=2).fit(
        _task(tiny), _data(folder)
    )
    first, second = record.images[:8], record.images[8:]
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch) == list(range(32))
    assert first != second


def test_checkpoint_of_another_base_is_refused(tmp_path, folder, tiny):
    _trainer(tmp_path).fit(_task(tiny), _data(folder))
    seed_everything(1)
    other = ExploraDinoTask(**tiny)
    with pytest.raises(ValueError, match='was trained on base'):
        _trainer(tmp_path, max_steps=8).fit(
            other, _data(folder), ckpt_path=tmp_path / 'last.ckpt'
        )


def test_load_from_checkpoint_restores_the_adapter(tmp_path, folder, tiny):
    tiny = {k: v for k, v in tiny.items() if k != 'rank'}
    adapter = LoHaConfig(r=2, alpha=1, target_modules=['q', 'v'])
    task = _task(tiny, adapter=adapter)
    _trainer(tmp_path).fit(task, _data(folder))
    seed_everything(0)
    again = ExploraDinoTask.load_from_checkpoint(tmp_path / 'last.ckpt')
    assert isinstance(again.adaptation.adapter, LoHaConfig)
    for key, value in delta_state_dict(task).items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize(
    ('given', 'rank', 'alpha'),
    [({}, 64, 1), ({'rank': 8}, 8, 1), ({'rank': 8, 'alpha': 4}, 8, 4)],
)
def test_default_adapter_is_the_papers_lora(tiny, given, rank, alpha):
    del tiny['rank']
    task = _task(tiny, **given)
    layer = task.backbone.blocks[0].attn.q
    assert layer.r['default'] == rank
    assert layer.scaling['default'] == alpha / rank


def test_statistics_of_other_channels_are_the_mean_of_the_bases(tiny):
    base = {'model': 'vit_tiny_patch16_224.augreg_in21k', 'in_channels': 4}
    assert _task(tiny, **base).mean == (0.5,) * 4
    base['model'] = 'vit_small_patch14_dinov2'
    task = _task(tiny, **base)
    assert task.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3] * 4)
    assert task.std == pytest.approx([(0.229 + 0.224 + 0.225) / 3] * 4)
    assert _task(tiny, **base, mean=[0.1] * 4).mean == (0.1,) * 4


def test_endless_run_is_refused(tmp_path, folder, tiny):
    with pytest.raises(ValueError, match='has no end'):
        _trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(_task(tiny), _data(folder))


def test_run_without_a_step_is_refused(tmp_path, folder, tiny):
    with pytest.raises(ValueError, match='batch'):
        _trainer(tmp_path).fit(_task(tiny), _data(folder, batch_size=64))
    with pytest.raises(ValueError, match='0 optimizer steps are planned'):
        _trainer(tmp_path, max_steps=-1, max_epochs=0).fit(_task(tiny), _data(folder))


def test_nan_loss_names_its_term(tmp_path, folder, tiny):
    task = _task(tiny, recipe='paper')
    with torch.no_grad():
        task.objective.head.mlp[0].weight.fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='dino_local'):
        _trainer(tmp_path).fit(task, _data(folder))


def test_one_term_that_is_not_finite_stops_the_run(tmp_path, folder, tiny):
    task = _task(tiny)
    task.objective.koleo_weight = float('nan')
    with pytest.raises(FloatingPointError, match='the loss term koleo is not finite'):
        _trainer(tmp_path).fit(task, _data(folder))


def test_rank_beside_an_adapter_is_refused(tiny):
    with pytest.raises(ValueError, match='describe the default LoRA'):
        _task(tiny, adapter=LoHaConfig(r=2, target_modules=['q', 'v']))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image_size': 33}, 'not a multiple of patch_size'),
        ({'unfreeze': [7]}, 'names block 7'),
        ({'model': 'vit_tinny_patch16_224'}, 'did you mean'),
        ({'model': 'swin_tiny_patch4_window7_224', 'model_args': None}, 'Swin'),
        ({'weights': 'no/such/file.pth'}, 'no/such/file'),
    ],
)
def test_bad_arguments_say_what_to_do(tmp_path, folder, tiny, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _trainer(tmp_path).fit(_task(tiny, **change), _data(folder))


def test_wrong_channel_count_is_named(tmp_path, folder, tiny):
    task = _task(tiny, in_channels=4)
    with pytest.raises(ValueError, match='in_channels'):
        _trainer(tmp_path).fit(task, _data(folder))


class Endless(IterableDataset):
    """Iterable data without a length."""

    def __iter__(self):
        while True:
            yield {'image': torch.rand(3, 40, 40) * 255}


def test_iterable_data_trains_for_max_steps(tmp_path, tiny):
    task = _task(tiny, value_range=[0, 255])
    loader = DataLoader(Endless(), batch_size=4)
    _trainer(tmp_path, max_steps=2).fit(task, loader)
    assert task.trainer.global_step == 2


def test_iterable_data_needs_max_steps(tmp_path, tiny):
    task = _task(tiny, value_range=[0, 255])
    with pytest.raises(ValueError, match='no end'):
        _trainer(tmp_path, max_steps=-1, max_epochs=1).fit(
            task, DataLoader(Endless(), batch_size=4)
        )


def test_half_precision_weights_are_refused(tmp_path, folder, tiny):
    with pytest.raises(ValueError, match='bf16-mixed'):
        _trainer(tmp_path, precision='bf16-true').fit(_task(tiny), _data(folder))


def test_base_in_half_precision_changes_no_bit_of_a_run(tmp_path, folder, tiny):
    deltas = []
    for kind in ('float32', 'bfloat16'):
        task = _task(tiny, frozen_dtype=kind)
        place = tmp_path / kind
        _trainer(place, precision='bf16-mixed', callbacks=[]).fit(task, _data(folder))
        deltas.append(delta_state_dict(task.objective.teacher))
    for name, value in deltas[0].items():
        assert torch.equal(deltas[1][name], value), name


def test_base_in_half_precision_is_refused_in_full(tmp_path, folder, tiny):
    task = _task(tiny, frozen_dtype='bfloat16')
    with pytest.raises(ValueError, match='bf16-mixed'):
        _trainer(tmp_path).fit(task, _data(folder))


@pytest.mark.cli
def test_compiled_blocks_have_no_graph_break(monkeypatch, tiny):
    counter = CompileCounter()
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    expected = _task(tiny)
    task = _task(tiny, checkpointing=True)
    compile_blocks(task.objective)
    image = {'image': torch.rand(2, 3, 40, 40)}
    frames = []
    # Each seed masks another number of patches.
    for seed in range(3):
        terms = []
        for objective in (expected.objective, task.objective):
            torch.manual_seed(seed)
            found = objective(image, 0.5)
            torch.stack([*found.values()]).sum().backward()
            terms.append(torch.stack([*found.values()]))
        assert torch.equal(*terms)
        frames.append(counter.frame_count)
    # Blocks of teacher and student, of global and local views: a fixed number.
    assert 0 < frames[0] <= 4
    assert set(frames) == {frames[0]}


@pytest.mark.cli
@pytest.mark.parametrize('masked', [False, True, 'anchored'])
def test_compiled_run_works_with_the_callbacks_it_brings(
    tmp_path, folder, tiny, masked, monkeypatch
):
    """Views and batches of kNN and pictures are not those of the training.

    An anchor and drop path make more graphs than torch's limit allows.
    """
    monkeypatch.undo()  # the pictures are wanted here
    # An eager backend: what is compiled anew counts, not how fast it is.
    compile_with = partial(torch.compile, backend='eager')
    monkeypatch.setattr(torch, 'compile', compile_with)
    torch._dynamo.reset()
    # What an earlier test raised.
    torch._dynamo.config.recompile_limit = 8
    if masked == 'anchored':
        objective = tiny['objective'] | {'gram_weight': (0.0, 2.0)}
        task = _task(tiny, compiled=True, drop_path=0.2, objective=objective)
    elif masked:
        names = ('model', 'weights', 'image_size', 'model_args', 'rank')
        seed_everything(0)
        task = ExploraMAETask(compiled=True, **{name: tiny[name] for name in names})
    else:
        task = _task(tiny, compiled=True)
    knn = OnlineKNN(every_n_steps=1, batch_size=3)
    _trainer(tmp_path, callbacks=[knn], max_steps=3).fit(task, _data(folder))
    assert list(knn.history) == [0, 1, 2, 3]
    assert read_delta_metadata(tmp_path / 'delta.safetensors')['steps'] == '3'


def test_weight_decay_spares_vectors_and_magnitudes(tiny, tmp_path, folder):
    """As in M-ExPLoRA; without decay the groups stay as checkpoints have them."""
    task = _task(tiny, schedule={'weight_decay': 0.1})
    seen = {}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            for group in trainer.optimizers[0].param_groups:
                seen.update({id(p): group['weight_decay'] for p in group['params']})

    _trainer(tmp_path, max_steps=1, callbacks=[Look()]).fit(task, _data(folder))
    named = {n: p for n, p in task.objective.named_parameters() if p.requires_grad}
    assert seen.keys() == {id(parameter) for parameter in named.values()}
    for name, parameter in named.items():
        spared = parameter.ndim < 2 or name == 'head.prototypes.magnitude'
        assert seen[id(parameter)] == (0.0 if spared else 0.1), name
    assert len(_task(tiny).parameter_groups()) == 2


def test_delta_records_the_pixels_it_saw(tiny, tmp_path, folder):
    task = _task(tiny)
    _trainer(tmp_path, max_steps=1).fit(task, _data(folder))
    found = read_delta_metadata(tmp_path / 'delta.safetensors')
    assert json.loads(found['value_range']) == [[0.0], [255.0]]
    assert json.loads(found['bands']) == ['red', 'green', 'blue']
    assert json.loads(found['quantize']) is False
    assert json.loads(found['crop_fraction']) == 1.0
    assert found['pooling'] == 'cls'
    # What is recorded is what online kNN judged by.
    task.trainer.callbacks.append(OnlineKNN(pooling='both'))
    assert task.delta_metadata()['pooling'] == 'both'


def test_the_users_own_writer_is_kept(tmp_path, folder, tiny):
    writer = EmbeddingWriter(tmp_path / 'mine.parquet')
    _trainer(tmp_path, callbacks=[writer]).predict(
        _task(tiny), _data(folder), return_predictions=False
    )
    assert (tmp_path / 'mine.parquet').is_file()
    assert not (tmp_path / 'embeddings.parquet').exists()


def test_prediction_checks_the_value_range_too(tmp_path, folder, tiny):
    task = _task(tiny, value_range=[20000, 30000])
    with pytest.raises(ValueError, match='outside the value range'):
        _trainer(tmp_path).predict(task, _data(folder))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'views': {'local_size': 20}}, r'\*local_size\* 20 .* use 16'),
        ({'base_lr': 0.0}, r'\*base_lr\*'),
        ({'rank': 0, 'alpha': 3}, r'\*alpha\*'),
        ({'schedule': {'warmup': 2.0}}, r'\*warmup\* is a share'),
        (
            {'unfreeze': [], 'rank': 0, 'norms': False, 'cls_token': False},
            'nothing in the backbone would train',
        ),
        (
            {
                'rank': None,
                'adapter': AdaLoraConfig(total_step=9, target_modules=['q', 'v']),
            },
            'AdaLoraConfig removes ranks',
        ),
        (
            {
                'rank': None,
                'adapter': {'class_path': 'peft.LoHaConfig', 'init_args': {'rr': 2}},
            },
            r'peft.LoHaConfig does not take .*rr',
        ),
    ],
)
def test_wrong_arguments_are_named(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        _task(tiny, **arguments)
