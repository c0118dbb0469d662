"""The arguments that downstream tasks share: declared once, found and kept by all."""

from dataclasses import fields

import pytest
import torch
from jsonargparse import ArgumentParser
from torchgeo.tasks import BaseTask

from tests.tasks.small_runs import VIT
from torchgeo_explora import tasks
from torchgeo_explora.models import GroupChannelViT
from torchgeo_explora.tasks.downstream.options import (
    DownstreamOptions,
    FinetuningOptions,
)

pytestmark = pytest.mark.filterwarnings('ignore')

#: Tasks with the arguments that they need, and the options that they take.
EVERY = [
    ('ExploraKNNTask', {}, DownstreamOptions),
    ('ExploraLinearProbeTask', {'num_classes': 2}, DownstreamOptions),
    ('ExploraClassificationTask', {'num_classes': 2}, FinetuningOptions),
    ('ExploraSegmentationTask', {'num_classes': 2}, FinetuningOptions),
    ('ExploraDetectionTask', {'num_classes': 2}, FinetuningOptions),
]


def saved(task, place):
    """Return the file of a checkpoint, and what it holds, read without running code."""
    path = place / 'task.ckpt'
    checkpoint = {
        'state_dict': task.state_dict(),
        'hyper_parameters': dict(task.hparams),
    }
    torch.save(checkpoint, path)
    return path, torch.load(path, weights_only=True)


@pytest.mark.parametrize(('name', 'own', 'options'), EVERY)
def test_a_configuration_finds_the_options_with_defaults_and_documentation(
    name, own, options
):
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseTask, 'model')
    path = f'torchgeo_explora.tasks.{name}'
    given = [f'--model.init_args.{key}={value}' for key, value in own.items()]
    config = parser.parse_args([f'--model={path}', *given]).model.init_args
    for field in fields(options):
        # A parser gives lists for sequences.
        default = [] if field.default == () else field.default
        assert config[field.name] == default, field.name
    shown = ArgumentParser()
    shown.add_class_arguments(getattr(tasks, name))
    documented = {action.dest: action.help for action in shown._actions}
    for field in fields(options):
        assert documented[field.name], field.name


@pytest.mark.parametrize(('name', 'own', 'options'), EVERY)
def test_a_task_stores_every_option_as_a_plain_value(name, own, options, tmp_path):
    task = getattr(tasks, name)(**VIT, **own, crop_fraction=0.5)
    _, checkpoint = saved(task, tmp_path)
    hyper = checkpoint['hyper_parameters']
    expected = {field.name: field.default for field in fields(options)}
    expected |= {**VIT, **own, 'crop_fraction': 0.5}
    if options is FinetuningOptions:
        # The default that depends on *adapter*.
        expected['rank'] = 8
    assert {key: hyper[key] for key in expected} == expected


def test_a_backbone_is_stored_by_its_arguments(tmp_path):
    sizes = {'embed_dim': 32, 'depth': 4, 'num_heads': 2, 'channel_embed_dim': 16}
    backbone = GroupChannelViT(['R', 'G'], [['R'], ['G']], image_size=32, **sizes)
    task = tasks.ExploraClassificationTask(
        num_classes=3, model=backbone, weights=None, rank=2
    )
    assert task.backbone is backbone
    path, checkpoint = saved(task, tmp_path)
    arguments = checkpoint['hyper_parameters']['model']['init_args']
    assert arguments['groups'] == [['R'], ['G']]
    again = tasks.ExploraClassificationTask(**checkpoint['hyper_parameters'])
    again.load_state_dict(torch.load(path, weights_only=True)['state_dict'])
    for key, value in task.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize('name', [name for name, _, _ in EVERY])
def test_a_task_is_at_most_three_classes_above_torchgeos(name):
    kinds = getattr(tasks, name).__mro__
    own = [kind for kind in kinds if kind.__module__.startswith('torchgeo_explora')]
    assert len(own) <= 3
