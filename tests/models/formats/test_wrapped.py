"""Backbones inside the checkpoints of TorchGeo's tasks and of lightly-train."""

import pytest
import timm
import torch
from timm.models import register_model
from torch.testing import assert_close
from torchgeo.tasks import BYOL, MAE, Classification, MoCo, SemanticSegmentation, SimCLR

from torchgeo_explora.models import ViT
from torchgeo_explora.models.checkpoints import read_state
from torchgeo_explora.models.formats.wrapped import (
    from_lightly_train,
    from_torchgeo,
    to_torchgeo,
)

SIZES = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}


@register_model
def explora_tiny_plain(pretrained=False, **options):
    """A small ViT that TorchGeo's tasks can name."""
    options = {'img_size': 32, 'dynamic_img_size': True, **SIZES, **options}
    return timm.create_model('vit_tiny_patch16_224', **options)


TASKS = {
    'Classification': (Classification, {'num_classes': 3}, 'model.', 'model'),
    'MoCo': (MoCo, {'version': 3, 'layers': 2}, 'backbone.', 'backbone'),
    'SimCLR': (SimCLR, {'layers': 2}, 'backbone.', 'backbone'),
    'MAE': (MAE, {'decoder_dim': 16, 'size': 32}, 'backbone.vit.', 'backbone.vit'),
    'BYOL': (BYOL, {'in_channels': 3}, 'model.backbone.model.', 'model.backbone.model'),
    'SemanticSegmentation': (
        SemanticSegmentation,
        {'model': 'dpt', 'backbone': 'tu-vit_tiny_patch16_224', 'num_classes': 2},
        'model.encoder.model.',
        'model.encoder.model',
    ),
}


@pytest.fixture(params=TASKS)
def task(request):
    """A task with an untrained ViT inside, its prefix, and the ViT."""
    build, options, prefix, place = TASKS[request.param]
    task = build(**{'model': 'explora_tiny_plain', **options})
    return task, prefix, task.get_submodule(place)


@pytest.mark.filterwarnings('ignore')
def test_torchgeo_checkpoint_comes_back_to_the_bit(task, tmp_path):
    task, prefix, vit = task
    state = {key: value.clone() for key, value in task.state_dict().items()}
    checkpoint = {'state_dict': state, 'hyper_parameters': {'model': 'x'}}
    backbone, rest = from_torchgeo(checkpoint)
    expected = {k: v for k, v in vit.state_dict().items() if not k.startswith('head.')}
    assert_close(backbone, expected, rtol=0, atol=0)
    assert len(backbone) + len(rest) == len(state)
    again = to_torchgeo(backbone, rest, prefix)
    assert again.keys() == state.keys()
    assert_close(again, state, rtol=0, atol=0)

    path = tmp_path / 'task.ckpt'
    torch.save(checkpoint, path)
    assert_close(read_state(path, '')[0], backbone, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('prefix', 'others'),
    [
        ('teacher_embedding_model_wrapper._model.', 'student_embedding_model_wrapper'),
        ('teacher_embedding_model.wrapped_model._model.', 'student_embedding_model'),
        ('embedding_model.wrapped_model._model.', 'projection_head'),
        ('wrapped_model._model.', 'embed_head'),
    ],
)
@pytest.mark.parametrize('own', [False, True], ids=['timm', 'dinov2'])
def test_lightly_train_is_unwrapped_to_the_bit(prefix, others, own):
    vit = ViT('vit_small_patch14_dinov2', image_size=28, **SIZES)
    inner = dict(vit.canonical_state_dict())
    if own:
        inner['mask_token'] = torch.ones(1, 24)
    outer = {f'{others}.weight': torch.ones(2)}
    if others.startswith('student'):
        middle = prefix.removeprefix('teacher').partition('_model.')[2]
        student = f'{others}.{middle}' if 'wrapped' in prefix else f'{others}._model.'
        outer |= {f'{student}{key}': value + 1 for key, value in inner.items()}
    state = {f'{prefix}{key}': value for key, value in inner.items()} | outer
    backbone, rest = from_lightly_train({'state_dict': state})
    ViT('vit_small_patch14_dinov2', image_size=28, **SIZES).load_state_dict(backbone)
    if own:
        outer['mask_token'] = inner.pop('mask_token')
    for found, expected in ((backbone, inner), (rest, outer)):
        assert found.keys() == expected.keys()
        assert_close(found, expected, rtol=0, atol=0)


def test_checkpoint_without_a_vit_is_refused():
    state = {'model.conv1.weight': torch.ones(1)}
    for convert in (from_torchgeo, from_lightly_train):
        with pytest.raises(ValueError, match=r"found \['model.conv1.weight'\]"):
            convert({'state_dict': state})
