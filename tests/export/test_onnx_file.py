"""Backbones as ONNX. An export takes seconds: each is made once, for several tests."""

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.export import export_onnx, onnx_file
from torchgeo_explora.models import DOFAViT, GroupChannelViT, TemporalViT, ViT

onnxruntime = pytest.importorskip('onnxruntime')


SIZES = {'embed_dim': 24, 'depth': 1, 'num_heads': 2}
SMALL = {
    'dinov2': lambda: ViT('vit_small_patch14_dinov2', image_size=28, **SIZES),
    'registers': lambda: ViT('vit_small_patch14_reg4_dinov2', image_size=28, **SIZES),
    'groups': lambda: GroupChannelViT(
        image_size=16, patch_size=8, channel_embed_dim=8, **SIZES
    ),
    'dofa': lambda: DOFAViT([0.665, 2.19], image_size=16, patch_size=8, **SIZES),
}


def features(path, image):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(x) for x in session.run(None, {'image': image.numpy()})]


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Return a function that gives a small backbone and its file, made once."""
    cache = {}

    def export(name):
        if name not in cache:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                backbone = SMALL[name]().eval()
                for parameter in backbone.parameters():
                    torch.nn.init.normal_(parameter, std=0.2)
            path = tmp_path_factory.mktemp(name) / 'backbone.onnx'
            export_onnx(backbone, path)
            cache[name] = backbone, path
        return cache[name]

    return export


@pytest.mark.cli
@pytest.mark.parametrize('name', ['dinov2', 'groups', 'dofa'])
@torch.no_grad()
def test_any_batch_and_any_image_size(name, exported, picture):
    backbone, path = exported(name)
    height, width = backbone.image_size
    patch = backbone.patch_size
    for size in (
        (height, width),
        (height + patch, width),
        (height, 5 * patch),
        (patch, patch),
    ):
        image = picture(backbone, size)
        for batch in (image, image[:1], image.repeat(3, 1, 1, 1)):
            assert_close(features(path, batch), [*backbone(batch)], rtol=0, atol=1e-5)


@pytest.mark.cli
@torch.no_grad()
def test_registers_have_one_image_size(exported, picture):
    backbone, path = exported('registers')
    for image in (picture(backbone), picture(backbone)[:1]):
        assert_close(features(path, image), [*backbone(image)], rtol=0, atol=1e-5)


@pytest.mark.cli
def test_file_that_computes_something_else_is_noticed(exported):
    backbone, path = exported('dinov2')
    onnx_file._compare(path, backbone)
    other = copy.deepcopy(backbone)
    torch.nn.init.ones_(other.norm.weight)
    with pytest.raises(ValueError, match='onnxruntime differs from the backbone by'):
        onnx_file._compare(path, other)


def test_bicubic_weights_are_those_of_torch():
    values = torch.randn(1, 1, 7, 7)
    scale = (4 + 0.1) / 7
    expected = torch.nn.functional.interpolate(
        values, scale_factor=scale, mode='bicubic'
    )
    weight = onnx_file._cubic(4, 7, torch.tensor(1 / scale))
    assert_close(weight @ values[0, 0] @ weight.T, expected[0, 0])


def test_series_are_refused(tmp_path):
    backbone = TemporalViT(16, 8, 24, 1, 2, time_embed_dim=12)
    with pytest.raises(ValueError, match='TemporalViT takes timestamps'):
        export_onnx(backbone, tmp_path / 'backbone.onnx')


def test_weights_above_the_limit_of_the_format_are_refused(make, tmp_path, monkeypatch):
    backbone = make('dinov2')
    huge = np.int64(2**31)
    monkeypatch.setattr(torch.Tensor, 'element_size', lambda _: huge)
    with pytest.raises(ValueError, match='an ONNX file holds at most 2: use exp'):
        export_onnx(backbone, tmp_path / 'backbone.onnx')
