"""Files of timm and TorchGeo: what stock code makes of them."""

import json
import resource

import pytest
import timm
import torch
from safetensors import safe_open
from torch.testing import assert_close
from torchgeo.tasks import Classification, SemanticSegmentation

from torchgeo_explora.adapt import merged
from torchgeo_explora.export import (
    export_dinov2,
    export_dinov3,
    export_timm,
    export_torchgeo,
    export_torchgeo_segmentation,
)
from torchgeo_explora.models import GroupChannelViT, RotaryViT, ViT
from torchgeo_explora.models.backbones.prompts import Prompts
from torchgeo_explora.models.checkpoints import from_dinov2, read_state


@pytest.mark.parametrize('name', ['dinov2', 'gated', 'registers', 'mae', 'stock'])
@torch.no_grad()
def test_timm_gives_the_same_features(name, trained, picture, tmp_path):
    backbone = trained(name)
    path = tmp_path / 'out' / 'backbone.safetensors'
    export_timm(backbone, path, {'note': 'mine'})
    options = {k: v for k, v in backbone.arguments.items() if k != 'model'}
    options['img_size'] = options.pop('image_size')
    options['in_chans'] = options.pop('in_channels')
    model = timm.create_model(
        backbone.arguments['model'], checkpoint_path=path, num_classes=0, **options
    ).eval()
    image = picture(backbone)
    tokens, expected = model.forward_features(image), backbone(image)
    assert_close(tokens[:, 0], expected.cls, rtol=0, atol=1e-5)
    patches = tokens[:, -expected.patch.shape[1] :]
    assert_close(patches, expected.patch, rtol=0, atol=1e-5)
    with safe_open(path, 'pt') as file:
        metadata = file.metadata()
    assert metadata['note'] == 'mine'
    assert json.loads(metadata['arguments'])['model'] == backbone.arguments['model']
    assert metadata['base'] == backbone.record.fingerprint


@pytest.mark.parametrize('name', ['dinov2', 'groups'])
def test_our_backbone_reads_the_file_of_timm(name, trained, picture, tmp_path):
    backbone = trained(name)
    export_timm(backbone, tmp_path / 'plain.safetensors')
    kind = {'dinov2': ViT, 'groups': GroupChannelViT}[name]
    weights = tmp_path / 'plain.safetensors'
    again = kind(**backbone.arguments, weights=weights).eval()
    image = picture(backbone)
    assert_close(again(image), merged(backbone)(image), rtol=0, atol=0)


@pytest.mark.parametrize('name', ['dinov2', 'gated', 'registers'])
def test_file_of_dinov2_has_the_released_names(name, trained, tmp_path):
    backbone, path = trained(name), tmp_path / 'backbone.pth'
    export_dinov2(backbone, path)
    published = torch.load(path, weights_only=True)
    state, rest = from_dinov2(published)
    assert rest.keys() == {'mask_token'}
    expected = merged(backbone).canonical_state_dict()
    assert state.keys() == expected.keys()
    assert_close(state, expected, rtol=0, atol=0)
    again = ViT(**backbone.arguments, weights=path)
    assert_close(again.canonical_state_dict(), expected, rtol=0, atol=0)
    assert any('mlp.w12.' in key for key in published) == (name == 'gated')


@pytest.mark.parametrize('name', ['rotary', 'rotary gated'])
def test_file_of_dinov3_is_read_back(name, trained, picture, tmp_path):
    backbone, path = trained(name), tmp_path / 'backbone.pth'
    export_dinov3(backbone, path)
    assert 'storage_tokens' in torch.load(path, weights_only=True)
    again = RotaryViT(**backbone.arguments, weights=path).eval()
    image = picture(backbone)
    assert_close(again(image), merged(backbone)(image), rtol=0, atol=0)


@pytest.mark.parametrize('name', ['rotary', 'rotary gated'])
def test_timm_reads_a_rotary_backbone_at_any_size(name, trained, tmp_path):
    backbone = trained(name)
    export_timm(backbone, tmp_path / 'plain.safetensors')
    options = {**backbone.arguments, 'num_classes': 0}
    options['img_size'] = options.pop('image_size')
    options['in_chans'] = options.pop('in_channels')
    vit = timm.create_model(
        options.pop('model'), checkpoint_path=tmp_path / 'plain.safetensors', **options
    ).eval()
    image = torch.rand(1, 3, 48, 32)
    expected = backbone(image)
    tokens = vit.forward_features(image)
    assert_close(tokens[:, 0], expected.cls, rtol=1e-4, atol=1e-5)
    assert_close(tokens[:, 5:], expected.patch, rtol=1e-4, atol=1e-5)


def test_file_of_dinov2_has_the_names_of_the_reference(golden, tmp_path):
    names = set()
    for part in ('dinov2_vit_position', 'dinov2_vit_blocks', 'dinov2_vit'):
        tensors, config = golden(part)
        names |= {k.removeprefix('sd.') for k in tensors if k.startswith('sd.')}
    sizes = {key: config['model'][key] for key in ('embed_dim', 'depth', 'num_heads')}
    backbone = ViT('vit_small_patch14_dinov2', image_size=28, **sizes)
    export_dinov2(backbone, tmp_path / 'backbone.pth')
    assert torch.load(tmp_path / 'backbone.pth', weights_only=True).keys() == names


@pytest.mark.parametrize('name', ['mae', 'groups'])
def test_model_that_dinov2_does_not_have_is_refused(name, make, tmp_path):
    with pytest.raises(ValueError, match=r'do not fit a DINOv2 checkpoint: missing'):
        export_dinov2(make(name), tmp_path / 'backbone.pth')
    assert not [*tmp_path.iterdir()]


@torch.no_grad()
def test_stock_classification_takes_the_file(trained, picture, tmp_path):
    backbone, path = trained('stock'), tmp_path / 'backbone.ckpt'
    name = export_torchgeo(backbone, path)
    task = Classification(name, str(path), num_classes=5).eval()
    image = picture(backbone)
    tokens = task.model.forward_features(image)
    assert_close(tokens[:, 0], backbone(image).cls, rtol=0, atol=1e-5)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['hyper_parameters'] == {'model': name, 'in_channels': 3}
    assert not any('head' in key for key in checkpoint['state_dict'])
    state, rest = read_state(path, '')
    assert_close(state, merged(backbone).canonical_state_dict(), rtol=0, atol=0)
    assert not rest


@torch.no_grad()
def test_head_makes_it_a_whole_task(trained, picture, tmp_path):
    backbone, path = trained('stock'), tmp_path / 'task.ckpt'
    head = torch.nn.Linear(24, 5)
    export_torchgeo(backbone, path, head=head)
    task = Classification.load_from_checkpoint(path).eval()
    image = picture(backbone)
    assert_close(task(image), head(backbone(image).cls), rtol=0, atol=1e-5)


def test_head_on_mean_tokens_is_refused(make, tmp_path):
    backbone = make('stock')
    backbone.norm = torch.nn.Identity()
    with pytest.raises(ValueError, match="fine-tune with pooling='cls'"):
        export_torchgeo(backbone, tmp_path / 'task.ckpt')


def test_visual_prompts_are_refused(make, tmp_path):
    backbone = make('stock')
    Prompts(backbone, 2)
    with pytest.raises(ValueError, match=r'visual prompts.*fine-tune with prompts=0'):
        export_timm(backbone, tmp_path / 'plain.safetensors')


def test_several_labels_stay_several(make, tmp_path):
    head = torch.nn.Linear(24, 5)
    path = tmp_path / 'task.ckpt'
    export_torchgeo(make('stock'), path, head=head, task='multilabel')
    assert Classification.load_from_checkpoint(path).hparams['num_labels'] == 5


@torch.no_grad()
def test_stock_segmentation_takes_the_file(trained, picture, tmp_path):
    backbone, path = trained('stock'), tmp_path / 'backbone.ckpt'
    name = export_torchgeo_segmentation(backbone, path)
    assert name == 'tu-explora_tiny_export'
    task = SemanticSegmentation('dpt', name, str(path), num_classes=2).eval()
    image = picture(backbone)
    assert task(image).shape == (2, 2, 32, 32)
    tokens = task.model.encoder.model.forward_features(image)
    assert_close(tokens[:, 0], backbone(image).cls, rtol=0, atol=1e-5)
    state, _ = read_state(path, '')
    assert_close(state, merged(backbone).canonical_state_dict(), rtol=0, atol=0)


def test_architecture_that_no_name_builds_is_refused(trained, tmp_path):
    backbone = trained('dinov2')
    with pytest.raises(ValueError, match='28 x 28 pixels: build the backbone at the'):
        export_torchgeo(backbone, tmp_path / 'backbone.ckpt')
    with pytest.raises(ValueError, match=r'by name \(explora_tiny_export\) has these'):
        export_torchgeo(backbone, tmp_path / 'backbone.ckpt', 'explora_tiny_export')
    assert not [*tmp_path.iterdir()]


def test_name_of_ours_is_found_for_dinov2_at_its_training_size(tmp_path):
    with torch.device('meta'):
        backbone = ViT('vit_small_patch14_dinov2', image_size=224)
    backbone.to_empty(device='cpu')
    name = export_torchgeo(backbone, tmp_path / 'backbone.ckpt')
    assert name == 'explora_vit_small_patch14_224'


@pytest.mark.parametrize('write', [export_timm, export_dinov2, export_torchgeo])
def test_full_disk_leaves_the_last_file(trained, write, tmp_path):
    path = tmp_path / 'backbone.safetensors'
    write(trained('stock'), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match=r'could not write .*: make room, or choose'):
            write(trained('stock', unfreeze=(0,)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_place_that_cannot_be_written_is_named(make, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=r'could not write .*file/backbone.safetensors'):
        export_timm(make('dinov2'), tmp_path / 'file' / 'backbone.safetensors')
