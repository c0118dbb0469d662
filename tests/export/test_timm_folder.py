"""Folders that timm reads by one name."""

import json

import huggingface_hub
import pytest
import timm
import torch
from torch.testing import assert_close

from torchgeo_explora.export import export_timm_folder


@pytest.mark.parametrize(
    'name', ['dinov2', 'gated', 'registers', 'mae', 'rotary', 'rotary gated']
)
@torch.no_grad()
def test_timm_builds_the_model_from_the_folder(
    name, trained, picture, tmp_path, monkeypatch
):
    backbone = trained(name)
    backbone.mean, backbone.std = (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)
    export_timm_folder(backbone, tmp_path / 'model')
    found = {path.name for path in (tmp_path / 'model').iterdir()}
    assert found == {'config.json', 'model.safetensors'}
    image = picture(backbone)
    expected = backbone(image)

    def check(model):
        tokens = model.eval().forward_features(image)
        assert_close(tokens[:, 0], expected.cls, rtol=0, atol=1e-5)
        patches = tokens[:, -expected.patch.shape[1] :]
        assert_close(patches, expected.patch, rtol=0, atol=1e-5)
        config = timm.data.resolve_model_data_config(model)
        assert tuple(config['mean']) == backbone.mean
        assert tuple(config['std']) == backbone.std
        assert tuple(config['input_size']) == (3, *backbone.image_size)

    check(timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True))

    # A repository with the same files.
    def download(repo_id, filename, **_):
        path = tmp_path / 'model' / filename
        if repo_id != 'user/name' or not path.exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError(filename)
        return str(path)

    monkeypatch.setattr(timm.models._hub, 'hf_hub_download', download)
    check(timm.create_model('hf-hub:user/name', pretrained=True))


def test_the_configuration_names_the_architecture(make, tmp_path):
    export_timm_folder(make('rotary'), tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['architecture'] == 'vit_small_patch16_dinov3_qkvb'
    assert config['model_args']['embed_dim'] == 48
    # With its head, the same folder is a start for a classifier.
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=3)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_what_timm_cannot_build_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match='no model for a GroupChannelViT: use'):
        export_timm_folder(make('groups'), tmp_path / 'model')
    assert not (tmp_path / 'model').exists()
