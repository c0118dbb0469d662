"""Decoders on maps of four blocks."""

import pytest
import torch

from torchgeo_explora.models.heads.pyramid import Rescale, SimplePyramid
from torchgeo_explora.models.heads.segmenter import SegmentationHead


@pytest.mark.parametrize('decoder', ['upernet', 'dpt', 'linear'])
@pytest.mark.parametrize(('grid', 'patch'), [(4, 14), (6, 16)])
def test_every_pixel_has_logits_whatever_the_patch(decoder, grid, patch):
    head = SegmentationHead(16, 3, decoder, channels=8)
    maps = [torch.randn(2, 16, grid, grid, requires_grad=True) for _ in range(4)]
    logits = head(maps, (grid * patch, grid * patch))
    assert logits.shape == (2, 3, grid * patch, grid * patch)
    logits.square().mean().backward()
    assert all(tokens.grad.abs().sum() > 0 for tokens in maps)
    assert all(p.grad is not None for p in head.parameters())


def test_linear_decoder_is_a_norm_and_a_product():
    head = SegmentationHead(4, 2, 'linear').eval()
    maps = [torch.randn(1, 4, 2, 2) for _ in range(4)]
    weight = head.classify.weight[:, :, 0, 0]
    scale = (1 + head.decoder.eps) ** -0.5
    expected = torch.einsum('kd,bdhw->bkhw', weight, torch.cat(maps, 1) * scale)
    expected = expected + head.classify.bias[:, None, None]
    torch.testing.assert_close(head(maps, (2, 2)), expected)


def test_odd_grids_are_refused_where_they_would_be_halved():
    maps = [torch.randn(1, 16, 5, 5) for _ in range(4)]
    with pytest.raises(ValueError, match=r'grid of patches, which is \(5, 5\)'):
        SegmentationHead(16, 3, 'dpt', 8)(maps, (70, 70))
    assert SegmentationHead(16, 3, 'upernet', 8).eval()(maps, (70, 70)).shape[-1] == 70


def test_unknown_decoders_and_factors_are_named():
    with pytest.raises(ValueError, match=r"\*decoder\* is 'unet'"):
        SegmentationHead(16, 3, 'unet')
    with pytest.raises(ValueError, match=r'\*factor\* is 3'):
        Rescale(16, 3)


def test_pyramid_has_four_resolutions():
    levels = SimplePyramid(16, 8)(torch.randn(1, 16, 4, 6))
    assert [tuple(x.shape[1:]) for x in levels] == [
        *((8, 16, 24), (8, 8, 12), (8, 4, 6), (8, 2, 3))
    ]
