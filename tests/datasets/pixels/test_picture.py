import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.pixels.picture import (
    cut,
    middle_square,
    move_boxes,
    open_picture,
)


def save(path, pixels, **options):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return str(path)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3))


def test_pixels_are_kept_without_a_size(tmp_path):
    pixels = noise(20, 30)
    with open_picture(save(tmp_path / 'a.png', pixels)) as image:
        found = cut(image, (3, 5, 13, 17))
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    expected = torch.tensor(pixels[5:17, 3:13]).permute(2, 0, 1).float()
    assert torch.equal(found, expected)


@pytest.mark.parametrize('mode', ['L', '1', 'RGBA', 'CMYK'])
def test_any_mode_becomes_true_colour(tmp_path, mode):
    path = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    Image.new('RGB', (8, 8), (255, 255, 255)).convert(mode).save(path, quality=100)
    with open_picture(str(path)) as image:
        found = cut(image, (0, 0, 8, 8), (4, 4))
    assert_close(found, torch.full((3, 4, 4), 255.0), atol=3, rtol=0)


def test_region_is_resized_with_antialiasing(tmp_path):
    """As PyTorch resizes the same pixels, to the rounding of 8 bits."""
    pixels = noise(40, 60)
    with open_picture(save(tmp_path / 'a.png', pixels)) as image:
        found = cut(image, (10, 8, 50, 36), (7, 16))
    part = torch.tensor(pixels[8:36, 10:50]).permute(2, 0, 1).float()
    expected = F.interpolate(part[None], (7, 16), mode='bilinear', antialias=True)[0]
    assert_close(found, expected, atol=1.0, rtol=0)


def test_large_jpeg_is_decoded_small_and_cut_in_the_same_place(tmp_path):
    """A smooth picture: decoding at 1/4 must not move or blur what is cut."""
    y, x = np.mgrid[0:801, 0:1203]
    pixels = np.stack([x / 5, y / 4, (x + y) / 9], -1)
    path = save(tmp_path / 'a.jpg', pixels, quality=100, subsampling=0)
    with open_picture(path) as image:
        found = cut(image, (200, 100, 1000, 700), (64, 64))
        assert image.size == (301, 201)
    part = torch.tensor(pixels[100:700, 200:1000]).permute(2, 0, 1).float()
    expected = F.interpolate(part[None], (64, 64), mode='bilinear', antialias=True)[0]
    assert_close(found, expected, atol=2, rtol=0)


def test_jpeg_is_never_decoded_below_twice_the_size(tmp_path):
    path = save(tmp_path / 'a.jpg', noise(512, 512))
    with open_picture(path) as image:
        cut(image, (0, 0, 512, 512), (256, 256))
        assert image.size == (512, 512)


def test_middle_square():
    assert middle_square(60, 40) == (10, 0, 50, 40)
    assert middle_square(5, 8) == (0, 1.5, 5, 6.5)


def test_boxes_move_with_the_region():
    boxes = torch.tensor([[10.0, 10, 20, 30], [0, 0, 100, 100], [0, 0, 10, 5]])
    # x: (10 - 10) * 2; y: (10 - 5) / 5 of what is left; the last one lies outside.
    found = move_boxes(boxes, (10, 5, 60, 55), (10, 100))
    assert found.tolist() == [[0, 1, 20, 5], [0, 0, 100, 10]]


def test_no_boxes_stay_none():
    assert move_boxes(torch.zeros(0, 4), (0, 0, 5, 5), (5, 5)).shape == (0, 4)


@pytest.mark.parametrize('keep', [None, 0, 100, 0.5])
def test_damaged_picture_is_named(tmp_path, keep):
    path = save(tmp_path / 'a.jpg', noise(64, 64))
    data = (tmp_path / 'a.jpg').read_bytes()
    if keep is None:
        (tmp_path / 'a.jpg').unlink()
    else:
        size = int(len(data) * keep) if keep == 0.5 else keep
        (tmp_path / 'a.jpg').write_bytes(data[:size])
    message = r'cannot read image .*a\.jpg: .*\. Replace the file$'
    with (
        pytest.raises(UnreadableImageError, match=message),
        open_picture(path) as image,
    ):
        cut(image, (0, 0, 64, 64), (32, 32))
