import json

import peft
import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close

from torchgeo_explora.adapt import lora
from torchgeo_explora.export import export_peft, export_peft_transformers
from torchgeo_explora.export.transformers_folder import transformers_model

ADAPTERS = {
    'LoRA': peft.LoraConfig(r=4, lora_alpha=1, target_modules=['q', 'v']),
    'MLP too': lora(4).__class__(r=4, target_modules=['q', 'proj', 'fc1']),
    'DoRA': peft.LoraConfig(r=4, use_dora=True, target_modules=['q', 'v']),
    'LoHa': peft.LoHaConfig(r=4, target_modules=['q', 'v']),
    'IA3': peft.IA3Config(target_modules=['k', 'fc2'], feedforward_modules=['fc2']),
}
NO_TOKEN = {'cls_token': False}


@pytest.mark.parametrize('adapter', ADAPTERS)
@pytest.mark.parametrize('name', ['dinov2', 'groups'])
@torch.no_grad()
def test_our_backbone_takes_the_adapter(
    adapter, name, make, trained, picture, tmp_path
):
    backbone = trained(name, adapter=ADAPTERS[adapter], unfreeze=(1,), **NO_TOKEN)
    export_peft(backbone, tmp_path, 'my/base')
    base = make(name)
    image = picture(base)
    before = base(image)
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    expected = backbone(image)
    assert_close(model(image), expected, rtol=0, atol=1e-5)
    assert (before.cls - expected.cls).abs().max() > 0.1
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == 'my/base'
    assert config['modules_to_save'][0] == 'blocks.0.norm1'
    assert 'blocks.1' in config['modules_to_save']


@pytest.mark.parametrize('adapter', ['LoRA', 'MLP too'])
@pytest.mark.parametrize('name', ['dinov2', 'mae', 'registers'])
@torch.no_grad()
def test_model_of_transformers_takes_the_adapter(
    adapter, name, make, trained, picture, tmp_path
):
    backbone = trained(name, adapter=ADAPTERS[adapter], **NO_TOKEN)
    export_peft_transformers(backbone, tmp_path)
    base = transformers_model(make(name))
    image = picture(backbone)
    before = base(image).last_hidden_state
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    found, expected = model(image).last_hidden_state, backbone(image)
    assert_close(found[:, 0], expected.cls, rtol=0, atol=1e-5)
    patches = found[:, -expected.patch.shape[1] :]
    assert_close(patches, expected.patch, rtol=0, atol=1e-5)
    assert (before - found).abs().max() > 0.1


@pytest.mark.parametrize('write', [export_peft, export_peft_transformers])
def test_trained_tensor_that_is_no_module_is_refused(write, trained, tmp_path):
    backbone = trained('dinov2', modules=['pos_embed'])
    with pytest.raises(ValueError, match='trained cls_token, pos_embed: use export_ti'):
        write(backbone, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_module_that_trains_whole_besides_is_carried(make, trained, picture, tmp_path):
    backbone = trained('dinov2', modules=['patch_embed'], **NO_TOKEN)
    export_peft_transformers(backbone, tmp_path)
    model = PeftModel.from_pretrained(transformers_model(make('dinov2')), tmp_path)
    image = picture(backbone)
    with torch.no_grad():
        found = model.eval()(image).last_hidden_state[:, 0]
        assert_close(found, backbone(image).cls, rtol=0, atol=1e-5)


def test_layer_that_the_model_does_not_have_is_named(trained, tmp_path):
    adapter = peft.LoraConfig(r=4, target_modules=['fc1'])
    backbone = trained('gated', adapter=adapter, **NO_TOKEN)
    with pytest.raises(ValueError, match=r'no separate layer for blocks.0.mlp.fc1'):
        export_peft_transformers(backbone, tmp_path)


def test_delta_without_an_adapter_is_refused(make, trained, tmp_path):
    with pytest.raises(ValueError, match='no delta: use export_timm'):
        export_peft(make('dinov2'), tmp_path)
    with pytest.raises(ValueError, match=r'the delta \[4\] has no adapter'):
        export_peft(trained('dinov2', adapter=None), tmp_path)
