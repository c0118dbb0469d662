"""DOFA: TorchGeo's model, as a backbone of ours."""

import json
import math

import pytest
import torch
from torch.testing import assert_close
from torchgeo.models import DOFA, DOFABase16_Weights, dofa_base_patch16_224
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    load_delta,
    lora,
    merged,
    save_delta,
    store_frozen,
    twin,
)
from torchgeo_explora.export import export_timm
from torchgeo_explora.export.rebuild import rebuild, reopen
from torchgeo_explora.models import DOFAViT
from torchgeo_explora.models.backbones.from_file import backbone_from_file
from torchgeo_explora.objectives import MAE

WAVES = [0.665, 0.56, 0.49, 0.842, 2.19]
TINY = {'embed_dim': 48, 'depth': 2, 'num_heads': 2}
CLOSE = {'atol': 1e-6, 'rtol': 1e-6}


def theirs(**options):
    """Return TorchGeo's model with the positions that its files have."""
    torch.manual_seed(0)
    model = DOFA(num_classes=0, **{'patch_size': 8, 'img_size': 32, **TINY, **options})
    with torch.no_grad():
        model.pos_embed.normal_(std=0.5)
        model.cls_token.normal_()
        for block in model.blocks:
            block.norm1.weight.uniform_(0.5, 2)
    return model.eval()


def ours(waves=WAVES, **options):
    torch.manual_seed(1)
    arguments = {'image_size': 32, 'patch_size': 8, **TINY, **options}
    return DOFAViT(waves, **arguments).eval()


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('waves', [WAVES, [3.75, 3.75], [1.375]])
def test_class_token_equals_that_of_torchgeos_dofa(waves):
    model, backbone = theirs(global_pool=False), ours(waves)
    backbone.load_state_dict(model.state_dict())
    image = images(2, len(waves), 32, 32)
    with torch.no_grad():
        assert_close(backbone(image).cls, model(image, waves), **CLOSE)


def test_patch_tokens_equal_those_that_torchgeos_dofa_pools():
    model, backbone = theirs(), ours()
    state = model.state_dict()
    state = {k.replace('fc_norm.', 'norm.'): v for k, v in state.items()}
    backbone.load_state_dict(state)
    image = images(2, 5, 32, 32)
    norm, backbone.norm = backbone.norm, torch.nn.Identity()
    with torch.no_grad():
        pooled = norm(backbone(image).patch.mean(1))
        assert_close(pooled, model(image, WAVES), **CLOSE)


def test_base_model_equals_torchgeos_and_its_file_loads(monkeypatch):
    """The released file has neither a norm nor a head."""
    torch.manual_seed(0)
    model = dofa_base_patch16_224(num_classes=0, global_pool=False).eval()
    state = {k: v for k, v in model.state_dict().items() if 'norm.' not in k[:5]}
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda *_, **__: state)
    backbone = DOFAViT(bands=['B4', 'B03', 'b2'], weights='DOFABase16_Weights.DOFA_MAE')
    image = images(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(image, [0.665, 0.56, 0.49])
        assert_close(backbone.eval()(image).cls, expected, **CLOSE)
    assert sum(p.numel() for p in backbone.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    with pytest.raises(ValueError, match=r'768 wide, and \*embed_dim\* is 1024'):
        DOFAViT(WAVES, DOFABase16_Weights.DOFA_MAE, embed_dim=1024, num_heads=16)


def test_weights_return_to_torchgeo_by_their_names(tmp_path):
    backbone = ours()
    model = theirs(global_pool=False)
    model.load_state_dict(backbone.canonical_state_dict())
    image = images(1, 5, 32, 32)
    with torch.no_grad():
        assert_close(model(image, WAVES), backbone(image).cls, **CLOSE)
    export_timm(backbone, tmp_path / 'dofa.safetensors')
    again = reopen(tmp_path / 'dofa.safetensors').eval()
    assert_close(again(image), backbone(image))
    assert again.arguments == backbone.arguments
    assert again.mean == (0.5,) * 5


def test_weights_of_another_architecture_are_refused(tmp_path, tiny_backbone):
    torch.save(tiny_backbone.canonical_state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(ValueError, match=r'vit.pth are not of DOFA: give DOFABase16'):
        ours(weights=tmp_path / 'vit.pth')


def test_order_of_bands_is_a_matter_of_their_wavelengths():
    backbone, other = ours(), ours(WAVES[::-1])
    other.load_state_dict(backbone.state_dict())
    image = images(1, 5, 32, 32)
    assert_close(other(image.flip(1)), backbone(image), atol=1e-5, rtol=1e-5)


def test_bands_by_name_in_any_spelling():
    names = ['B4', 'B03', 'blue', 'NIR', 'S2_B12']
    backbone = ours(None, bands=names)
    assert backbone.arguments['wavelengths'] == WAVES
    assert backbone.bands == tuple(names)
    assert ours(None, bands=['R', 'g', 'VV']).in_channels == 3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'bands': ['B4', 'thermal']}, 'of thermal is unknown: .* choose from B01,'),
        ({}, r'needs \*wavelengths\* in micrometres'),
        ({'waves': [665.0, 560, 4900]}, 'give micrometres from 0.1 to 1000'),
        ({'waves': [math.nan]}, 'give micrometres'),
        ({'waves': []}, 'give micrometres'),
        ({'waves': [0.5], 'bands': ['a', 'b']}, r'\*bands\* has 2 names'),
        ({'waves': [0.5], 'num_heads': 5}, r'\*embed_dim\* 48 is not a multiple'),
        ({'waves': [0.5], 'image_size': 36}, r'\(36, 36\) is not a multiple'),
    ],
)
def test_bad_wavelengths_and_sizes_get_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        ours(**{'waves': None, **options})


@pytest.mark.parametrize('call', ['__call__', 'patchify'])
def test_an_image_with_other_channels_is_refused(call):
    with pytest.raises(ValueError, match=r'C = 5 bands at 0.665, 0.56, .*micrometres'):
        getattr(ours(), call)(images(1, 3, 32, 32))
    with pytest.raises(ValueError, match='is not a multiple of patch_size 8'):
        getattr(ours(), call)(images(1, 5, 36, 32))


def test_any_size_in_patches_and_any_order_of_tokens():
    backbone = ours()
    image = images(2, 5, 16, 48)
    content, position, grid = backbone.embed(image)
    assert grid == (1, 2, 6)
    order = torch.randperm(12)
    found = backbone.encode(content[:, order], position[:, order])
    whole = backbone(image)
    assert_close(found.patch, whole.patch[:, order], atol=1e-5, rtol=1e-5)
    wanted = torch.rand(2, 12) > 0.5
    some = backbone(image, wanted=wanted)
    assert_close(some.patch, whole.patch[wanted], atol=1e-5, rtol=1e-5)


def test_positions_of_another_grid_are_resized_once():
    small, large = ours(), ours(image_size=64)
    large.load_state_dict(small.canonical_state_dict())
    assert large.pos_embed.shape == (1, 65, 48)
    assert_close(large.pos_embed[:, :1], small.pos_embed[:, :1])


def test_arguments_build_the_same_architecture_even_from_a_file():
    backbone = ours()
    arguments = json.loads(json.dumps(backbone.arguments))
    again = backbone_from_file(DOFAViT.public_name(), arguments)
    assert again.arguments == backbone.arguments
    with pytest.raises(ValueError, match='expected a list of finite numbers'):
        backbone_from_file(DOFAViT.public_name(), {'wavelengths': ['red']})


def test_every_parameter_but_the_positions_receives_a_gradient():
    backbone = ours()
    features = backbone(images(2, 5, 32, 32))
    (features.cls.square().sum() + features.patch.pow(3).sum()).backward()
    without = [n for n, p in backbone.named_parameters() if p.grad is None]
    assert without == ['pos_embed']


def test_delta_twin_merge_and_fingerprint(tmp_path):
    backbone = ours()
    torch.save(backbone.canonical_state_dict(), tmp_path / 'base.pth')
    backbone = ours(weights=tmp_path / 'base.pth').train()
    adapt(backbone, Adaptation(adapter=lora(2)))
    image = images(2, 5, 32, 32)
    teacher = twin(backbone)
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad])
    for _ in range(2):
        optimizer.zero_grad()
        backbone(image).cls.pow(3).sum().backward()
        optimizer.step()
    shared = teacher.patch_embed.weight_generator.fc_weight.weight
    assert shared is backbone.patch_embed.weight_generator.fc_weight.weight
    assert not torch.allclose(teacher(image).cls, backbone(image).cls)
    save_delta(backbone, tmp_path / 'delta.safetensors')
    found = rebuild(tmp_path / 'delta.safetensors', tmp_path / 'base.pth').eval()
    assert_close(found(image), backbone.eval()(image))
    assert_close(merged(found)(image), found(image), atol=1e-5, rtol=1e-5)
    other = ours()
    other.load_state_dict(ours(image_size=32, depth=2).state_dict())
    with torch.no_grad():
        other.cls_token.add_(1)
    other.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match='base'):
        load_delta(other, tmp_path / 'delta.safetensors')


def test_base_in_bfloat16_changes_no_bit_under_autocast():
    image = images(2, 5, 32, 32)
    backbone = adapt(ours(), Adaptation(adapter=lora(2))).eval()
    with torch.autocast('cpu', torch.bfloat16):
        expected = backbone(image)
        store_frozen(backbone, torch.bfloat16)
        assert_close(backbone(image), expected, atol=0, rtol=0)
    assert backbone(image).cls.isfinite().all()


def test_masked_autoencoder_learns_on_any_bands():
    torch.manual_seed(0)
    backbone = adapt(ours().train(), Adaptation(adapter=lora(4)))
    objective = MAE(backbone, decoder_dim=32, decoder_depth=1, decoder_heads=2)
    image = torch.nn.functional.interpolate(images(8, 5, 4, 4), size=32, mode='bicubic')
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-3)
    losses = []
    for step in range(20):
        torch.manual_seed(step)
        (loss,) = objective({'image': image}, 0.0).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
