"""Hugging Face transformers: names both ways, and the same features."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from torchgeo_explora.models import ViT
from torchgeo_explora.models.checkpoints import read_state
from torchgeo_explora.models.formats.transformers import (
    from_transformers,
    to_transformers,
)

transformers = pytest.importorskip('transformers')

SIZES = {'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 2}
SHARED = {**SIZES, 'image_size': 28, 'patch_size': 14}
OURS = {'image_size': 28, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}
PLAIN = {'intermediate_size': 96, 'layer_norm_eps': 1e-6}
DECODER = {
    'decoder_hidden_size': 16,
    'decoder_num_hidden_layers': 2,
    'decoder_num_attention_heads': 2,
    'decoder_intermediate_size': 32,
}
MODELS = {
    'Dinov2': ({'mlp_ratio': 4}, 'vit_small_patch14_dinov2', {}),
    'Dinov2 gated': (
        {'mlp_ratio': 4, 'use_swiglu_ffn': True},
        'vit_giant_patch14_dinov2',
        {'mlp_ratio': 128 / 24},
    ),
    'Dinov2WithRegisters': ({'mlp_ratio': 4}, 'vit_small_patch14_reg4_dinov2', {}),
    'ViT': (PLAIN, 'vit_small_patch16_224', {'patch_size': 14}),
    'ViTMAE': (
        {**PLAIN, 'mask_ratio': 0.0},
        'vit_small_patch16_224',
        {'patch_size': 14},
    ),
}


def build(name, head='Model'):
    """A model of transformers with random values, even where it starts at 0 or 1."""
    kind = name.split()[0]
    config = getattr(transformers, f'{kind}Config')
    options = MODELS[name][0] | (DECODER if kind == 'ViTMAE' else {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind + head)(config(**SHARED, **options)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """A model, the file it was saved to, and our backbone of the same kind."""
    model = build(request.param)
    model.save_pretrained(tmp_path)
    _, name, options = MODELS[request.param]
    return model, tmp_path / 'model.safetensors', ViT(name, **{**OURS, **options})


@torch.no_grad()
def test_features_equal_those_of_transformers(pair):
    model, file, backbone = pair
    backbone.eval().load_state_dict(from_transformers(load_file(file))[0])
    image = torch.randn(2, 3, 28, 28)
    expected = model(image).last_hidden_state
    cls, patch = backbone(image)
    assert_close(cls, expected[:, 0], rtol=0, atol=1e-5)
    if not isinstance(model, transformers.ViTMAEModel):  # shuffles patches
        assert_close(patch, expected[:, -4:], rtol=0, atol=1e-5)


def test_names_in_memory_are_read_as_those_of_files(pair):
    model, file, _ = pair
    memory, files = (
        from_transformers(model.state_dict()),
        from_transformers(load_file(file)),
    )
    for found, expected in zip(memory, files, strict=True):
        assert found.keys() == expected.keys()
        assert_close(found, expected, rtol=0, atol=0)


def test_file_comes_back_to_the_bit(pair):
    _, file, backbone = pair
    published = load_file(file)
    found, rest = from_transformers(published)
    backbone.load_state_dict(found)
    again = to_transformers(backbone.canonical_state_dict(), rest)
    assert again.keys() == published.keys()
    if 'embeddings.register_tokens' in published:
        first = ('embeddings.cls_token', 'embeddings.position_embeddings')
        assert_close(from_transformers(again)[0], found, rtol=0, atol=0)
        again = {key: value for key, value in again.items() if key not in first}
    assert_close(again, {key: published[key] for key in again}, rtol=0, atol=0)


def test_decoder_of_mae_comes_in_the_names_of_mae_and_goes_back():
    state = build('ViTMAE', 'ForPreTraining').state_dict()
    backbone, rest = from_transformers(state)
    assert rest['decoder_blocks.1.attn.qkv.weight'].shape == (48, 16)
    assert {'mask_token', 'decoder_pos_embed', 'decoder_pred.bias'} <= rest.keys()
    again = to_transformers(backbone, rest, 'vit.')
    assert 'decoder.decoder_layers.1.attention.attention.query.weight' in again
    for found, expected in zip(from_transformers(again), (backbone, rest), strict=True):
        assert_close(found, expected, rtol=0, atol=0)


def test_files_are_read_as_weights_of_a_backbone(pair):
    _, file, backbone = pair
    found, _ = read_state(file, '')
    assert_close(found, from_transformers(load_file(file))[0], rtol=0, atol=0)
    ViT(**backbone.arguments, weights=file)


def test_classifier_stays_in_the_rest():
    config = transformers.Dinov2Config(**SHARED, mlp_ratio=4)
    model = transformers.Dinov2ForImageClassification(config)
    backbone, rest = from_transformers(model.state_dict())
    assert rest.keys() == {'mask_token', 'classifier.weight', 'classifier.bias'}
    assert to_transformers(backbone, rest, 'dinov2.').keys() >= {'classifier.weight'}
    with pytest.raises(ValueError, match=r'Dinov2Model of .* has no head.weight'):
        to_transformers(backbone, {'head.weight': torch.ones(1)})


def test_missing_and_unknown_keys_are_all_listed():
    backbone, _ = from_transformers(build('Dinov2').state_dict())
    del backbone['norm.bias']
    backbone['channel_embed'] = torch.ones(1)
    with pytest.raises(ValueError, match=r'missing norm.bias; .*of it channel_embed'):
        to_transformers(backbone)
    with pytest.raises(ValueError, match='no ViT of transformers was found'):
        from_transformers({'weight': torch.ones(1)})


def test_key_that_no_rule_knows_is_listed_when_it_is_loaded():
    state = build('Dinov2').state_dict()
    state['encoder.layer.1.adapter.weight'] = torch.ones(1)
    backbone, _ = from_transformers(state)
    vit = ViT('vit_small_patch14_dinov2', **OURS)
    with pytest.raises(RuntimeError, match=r'blocks.1.adapter.weight'):
        vit.load_state_dict(backbone)
