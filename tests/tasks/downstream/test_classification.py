"""Fine-tuning to classify: what trains, losses, bad labels, and the command."""

import csv
from itertools import pairwise

import peft
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy
from torchgeo.datamodules import NonGeoDataModule

from tests.tasks.small_runs import VIT, command, images, stopped_at, write_config
from torchgeo_explora.adapt import Adaptation, adapt, merged, save_delta
from torchgeo_explora.adapt.ranks import RankSchedule
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import ExploraClassificationTask

pytestmark = pytest.mark.filterwarnings('ignore')


def make(**arguments):
    torch.manual_seed(0)
    return ExploraClassificationTask(**{**VIT, 'num_classes': 2, **arguments})


def trainer(place, **arguments):
    defaults = {
        'accelerator': 'cpu',
        'max_epochs': 2,
        'logger': False,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'num_sanity_val_steps': 0,
        'default_root_dir': place,
    }
    return Trainer(**{**defaults, **arguments})


def trained(task):
    return {name for name, p in task.named_parameters() if p.requires_grad}


def test_default_trains_lora_of_rank_8_and_the_linear_head():
    task = make()
    names = trained(task)
    assert {name for name in names if name.startswith('head')} == {
        *('head.linear.weight', 'head.linear.bias')
    }
    adapters = {name for name in names if name.startswith('backbone')}
    assert len(adapters) == 4 * 2 * 2
    assert all('.q.lora_' in name or '.v.lora_' in name for name in adapters)
    assert {p.shape for n, p in task.named_parameters() if 'lora_A' in n} == {(8, 24)}


def test_full_fine_tuning_trains_everything_with_the_norm_of_the_head():
    task = make(rank=0, modules=[''])
    assert trained(task) == {name for name, _ in task.named_parameters()}


def test_prompts_train_beside_a_frozen_backbone():
    task = make(rank=0, prompts=3, deep_prompts=True)
    assert trained(task) == {
        *('prompts.tokens', 'head.linear.weight', 'head.linear.bias')
    }
    assert task.prompts.tokens.shape == (4, 3, 24)


def test_drop_path_rises_to_the_rate_of_the_last_block():
    blocks = make(drop_path=0.3).backbone.blocks
    rates = [block.drop_path1.drop_prob for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r'\*drop_path\* is 1'):
        make(drop_path=1.0)


def test_delta_is_folded_in_before_the_fresh_adapter(tmp_path):
    torch.manual_seed(0)
    start = make(rank=0, pooling='cls')
    source = merged(start.backbone)
    adapt(source, Adaptation(modules=('cls_token',)))
    for parameter in source.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    path = tmp_path / 'delta.safetensors'
    save_delta(source, path, {'mean': '[0.1, 0.2, 0.3]', 'std': '[1, 1, 1]'})
    task = make(delta=str(path), pooling='cls')
    image = torch.randn(2, 3, 32, 32)
    expected = merged(source).eval()(image)
    torch.testing.assert_close(task.eval().backbone(image), expected)
    assert task.mean == (0.1, 0.2, 0.3)
    assert task.backbone.record.fingerprint != start.backbone.record.fingerprint


@pytest.mark.parametrize(
    'adapter',
    [
        peft.LoraConfig(r=4, target_modules=['q', 'v'], use_dora=True),
        peft.AdaLoraConfig(
            init_r=4, target_r=2, total_step=100, target_modules=['q', 'v']
        ),
        peft.BOFTConfig(boft_block_size=4, target_modules=['q', 'v']),
        peft.LoHaConfig(r=4, target_modules=['q', 'v']),
    ],
    ids=['DoRA', 'AdaLoRA', 'BOFT', 'LoHa'],
)
def test_any_peft_config_starts_as_the_base_and_trains(adapter):
    image = torch.randn(4, 3, 32, 32)
    plain, task = (
        make(adapter=a, rank=r).eval() for a, r in ((None, 0), (adapter, None))
    )
    torch.testing.assert_close(task.backbone(image).cls, plain.backbone(image).cls)
    nn.init.normal_(task.head.linear.weight)
    task.head(task.backbone(image)).square().mean().backward()
    adapters = [p for n, p in task.backbone.named_parameters() if p.requires_grad]
    assert adapters
    assert any(p.grad is not None and p.grad.any() for p in adapters)


def test_loss_is_smoothed_and_the_argument_turns_it_off():
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    for smoothing in (0.1, 0.0):
        loss = make(label_smoothing=smoothing).criterion(logits, labels)
        expected = cross_entropy(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)


@pytest.mark.cli
def test_backbone_keeps_its_base_and_learns(folder, tmp_path):
    task = make(base_lr=0.3, norms=True)
    before = {n: p.clone() for n, p in task.named_parameters()}
    run = trainer(tmp_path, max_epochs=8)
    run.fit(task, ImageFolderDataModule(folder, batch_size=8))
    assert run.callback_metrics['val_OverallAccuracy'] > 0.9
    assert 'val_ClasswiseAccuracy_0' in run.callback_metrics
    moved = {n for n, p in task.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained(task)
    assert (tmp_path / 'confusion_val.png').exists()


def test_checkpoint_makes_the_task_again(folder, tmp_path):
    task = make(adapter=None, rank=4, prompts=2)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, ImageFolderDataModule(folder, batch_size=8))
    path = tmp_path / 'a.ckpt'
    run.save_checkpoint(path)
    torch.manual_seed(0)
    again = ExploraClassificationTask.load_from_checkpoint(path)
    assert again.hparams['rank'] == 4
    for name, value in task.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    other = ImageFolderDataModule(folder, value_range=(0, 250), predict_split='val')
    with pytest.warns(
        UserWarning, match=r'trained on values in \[\[0.0\], \[255.0\]\]'
    ):
        trainer(tmp_path).predict(again, other)
    with pytest.warns(UserWarning, match='give the same'):
        trainer(tmp_path).predict(make(**again.hparams), other, ckpt_path=path)


class Labels(NonGeoDataModule):
    """Images whose labels are several at once, or one of two."""

    def __init__(self, labels):
        super().__init__(object, batch_size=4)
        self.labels = labels
        self.mean, self.std = torch.tensor(0.0), torch.tensor(255.0)

    def setup(self, stage):
        data = [
            {'image': torch.rand(3, 32, 32) * 255, 'label': label}
            for label in self.labels
        ]
        self.train_dataset = self.val_dataset = self.test_dataset = data


@pytest.mark.parametrize(
    ('arguments', 'labels'),
    [
        ({'task': 'multilabel', 'num_labels': 3}, torch.randint(2, (8, 3))),
        ({'task': 'binary'}, torch.randint(2, (8,))),
        ({'task': 'binary', 'pos_weight': [2.0]}, torch.randint(2, (8,))),
    ],
)
def test_several_labels_or_one_of_two(arguments, labels, tmp_path):
    task = make(num_classes=None, **arguments)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, Labels(labels))
    assert run.callback_metrics['val_loss'].isfinite()
    one_of_two = arguments['task'] == 'binary'
    assert (tmp_path / 'confusion_val.png').exists() == one_of_two
    assert (tmp_path / 'worst_val.png').exists()


@pytest.mark.parametrize(
    'counts', [{'num_classes': 1}, {'num_classes': 2}, {'num_labels': 1}]
)
def test_one_of_two_has_two_classes_and_one_output_whatever_counts_say(
    counts, tmp_path
):
    """TorchGeo's tasks leave the counts open for 'binary', and users fill them in."""
    task = make(**{'num_classes': None, 'task': 'binary'} | counts)
    with torch.no_grad():
        task.head.linear.weight.zero_()
        task.head.linear.bias.fill_(1.0)
    assert task.head.linear.out_features == 1
    data = Labels(torch.tensor([0, 1, 1, 1]))
    trainer(tmp_path).validate(task, data, verbose=False)
    assert task.confusion.num_classes == 2
    with (tmp_path / 'confusion_val.csv').open() as file:
        assert [*csv.reader(file)] == [
            *(['true', 'as 0', 'as 1'], ['0', '0', '1'], ['1', '0', '3']),
        ]


def test_ranks_move_by_the_steps_done(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(RankSchedule, 'step', lambda self, step: done.append(step))
    ranks = {'init_r': 4, 'target_r': 2, 'total_step': 100}
    task = make(adapter=peft.AdaLoraConfig(target_modules=['q', 'v'], **ranks))
    trainer(tmp_path, max_epochs=3).fit(task, Labels(torch.zeros(8).long()))
    assert done == list(range(1, task.tuning.ranks.last + 1))


def test_left_out_step_of_float16_moves_no_rank(tmp_path, monkeypatch):
    """The first scale overflows; ranks move with the steps that were taken."""
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**120, backoff_factor=2.0**-110)
    done, scales = [], [2.0**120]
    monkeypatch.setattr(RankSchedule, 'step', lambda self, step: done.append(step))
    ranks = {'init_r': 4, 'target_r': 2, 'total_step': 100}
    task = make(adapter=peft.AdaLoraConfig(target_modules=['q', 'v'], **ranks))
    task.on_train_batch_end = lambda *_: scales.append(scaler.get_scale())
    plugin = MixedPrecision('16-mixed', 'cpu', scaler)
    run = trainer(tmp_path, max_epochs=2, plugins=[plugin])
    run.fit(task, Labels(torch.zeros(8).long()))
    taken = [now >= before for before, now in pairwise(scales)]
    assert not taken[0]
    assert done == [i for i, good in enumerate(taken, 1) if good]
    assert done


@pytest.mark.parametrize(
    ('arguments', 'labels', 'message'),
    [
        ({}, torch.tensor([0, 1, 2, 7]), r'labels hold \[2, 7\], expected 0 to 1'),
        (
            {'num_classes': None, 'task': 'multilabel', 'num_labels': 4},
            torch.randint(2, (4, 3)),
            r'shape \(4, 3\), the outputs \(4, 4\)',
        ),
    ],
)
def test_labels_without_an_output_are_named(arguments, labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).validate(make(**arguments), Labels(labels))


def test_images_of_mixed_sizes_are_explained(tmp_path):
    data = Labels(torch.zeros(4, dtype=torch.long))
    data.setup('fit')
    data.val_dataset[1]['image'] = torch.zeros(3, 40, 32)
    data.setup = lambda stage: None
    with pytest.raises(ValueError, match='images of mixed sizes'):
        trainer(tmp_path).validate(make(), data)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_classes': None}, r'\*num_classes\* is needed'),
        ({'task': 'multilabel'}, r'\*num_labels\* is needed'),
        ({'task': 'binary', 'loss': 'ce'}, r"'ce' needs one label per image"),
        ({'base_lr': 0}, r'\*base_lr\* must be positive'),
        ({'labels': ['field']}, r'\*labels\* has 1 entries, expected .* the 2'),
        ({'class_weights': [1.0] * 3}, r'\*class_weights\* has 3 entries'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.cli
def test_command_fits_resumes_tests_and_predicts(folder, tmp_path):
    root = tmp_path / 'images'
    root.mkdir()
    for split in ('train', 'val', 'test', 'predict'):
        source = {'test': 'val'}.get(split, split)
        (root / split).symlink_to(folder / source)
    adapter = {
        'class_path': 'peft.LoraConfig',
        'init_args': {'r': 4, 'lora_alpha': 1, 'target_modules': ['q', 'v']},
    }
    model = {'num_classes': 2, 'adapter': adapter, 'prompts': 2, 'layer_decay': 0.8}
    saved = []
    for name in ('whole', 'cut'):
        place = tmp_path / name
        place.mkdir()
        config = write_config(place, 'ExploraClassificationTask', model, images(root))
        if name == 'cut':
            with stopped_at(ExploraClassificationTask, step=5):
                command('fit', config)
            command('fit', config, place / 'last.ckpt')
        else:
            command('fit', config)
        saved.append(torch.load(place / 'last.ckpt', weights_only=True))
    assert not any('base_layer' in key for key in saved[0]['state_dict'])
    for key, value in saved[0]['state_dict'].items():
        assert torch.equal(value, saved[1]['state_dict'][key]), key
    for stage in ('validate', 'test', 'predict'):
        command(stage, config, place / 'last.ckpt')
    table = pq.read_table(place / 'predictions.parquet')
    sums = [sum(row) for row in table['probabilities'].to_pylist()]
    assert sums == pytest.approx([1.0] * 10)


def test_confusion_counts_the_truth_by_row():
    """Two fields of which one is taken for water."""
    task = make()
    task.confusion.update(torch.tensor([[9.0, 0], [0, 9.0]]), torch.tensor([0, 0]))
    assert task.confusion.compute().tolist() == [[1, 1], [0, 0]]
