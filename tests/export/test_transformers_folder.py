import sys

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModel

from torchgeo_explora.export import export_transformers
from torchgeo_explora.models import RotaryViT, ViT


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('dinov2', 'Dinov2Model'),
        ('gated', 'Dinov2Model'),
        ('registers', 'Dinov2WithRegistersModel'),
        ('mae', 'ViTModel'),
        ('rotary', 'DINOv3ViTModel'),
        ('rotary gated', 'DINOv3ViTModel'),
    ],
)
@torch.no_grad()
def test_auto_model_gives_the_same_features(name, kind, trained, picture, tmp_path):
    backbone = trained(name)
    export_transformers(backbone, tmp_path / 'model')
    model = AutoModel.from_pretrained(tmp_path / 'model').eval()
    assert type(model).__name__ == kind
    image = picture(backbone)
    tokens, expected = model(image).last_hidden_state, backbone(image)
    assert_close(tokens[:, 0], expected.cls, rtol=0, atol=1e-5)
    patches = tokens[:, -expected.patch.shape[1] :]
    assert_close(patches, expected.patch, rtol=0, atol=1e-5)


def test_image_processor_makes_what_the_backbone_takes(make, tmp_path):
    backbone = make('dinov2')
    export_transformers(backbone, tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    pixels = processor(image, return_tensors='pt')['pixel_values']
    assert pixels.shape == (1, 3, 28, 28)
    assert tuple(processor.image_mean) == backbone.mean


def test_other_files_of_the_folder_stay(make, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    export_transformers(make('dinov2'), tmp_path)
    export_transformers(make('dinov2'), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {'notes.txt', 'config.json', 'model.safetensors'}
    assert not [name for name in names if name.endswith('.part')]


def test_backbones_that_transformers_does_not_have_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match='no model for a GroupChannelViT'):
        export_transformers(make('groups'), tmp_path)
    wide = ViT('vit_small_patch14_dinov2', image_size=(28, 42), embed_dim=24, depth=1)
    with pytest.raises(ValueError, match=r'only square position tables.*\(28, 42\)'):
        export_transformers(wide, tmp_path)
    odd = ViT('vit_small_patch14_dinov2', image_size=28, depth=1, mlp_ratio=1.5)
    with pytest.raises(
        ValueError, match='no integer mlp_ratio that gives 576 for width'
    ):
        export_transformers(odd, tmp_path)
    normed = ViT('vit_small_patch14_dinov2', image_size=28, depth=1, qk_norm=True)
    with pytest.raises(ValueError, match=r'not part of it blocks.0.attn.k_norm'):
        export_transformers(normed, tmp_path)


def test_missing_library_is_named(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ModuleNotFoundError, match=r'needs transformers: .*\[export\]'):
        export_transformers(make('dinov2'), tmp_path)


@torch.no_grad()
def test_rotary_positions_are_the_same_at_any_size(trained, picture, tmp_path):
    backbone = trained('rotary')
    export_transformers(backbone, tmp_path)
    model = AutoModel.from_pretrained(tmp_path).eval()
    image = picture(backbone, (48, 80))
    tokens, expected = model(image).last_hidden_state, backbone(image)
    assert_close(tokens[:, 5:], expected.patch, rtol=0, atol=1e-5)


def test_rotary_settings_that_transformers_lacks_are_refused(tmp_path):
    backbone = RotaryViT(
        'vit_small_patch16_dinov3',
        image_size=32,
        embed_dim=48,
        depth=1,
        num_heads=2,
        rope_grid_indexing='xy',
    )
    with pytest.raises(ValueError, match=r'no model like .*dinov3.*use export_timm'):
        export_transformers(backbone, tmp_path / 'model')
