import numpy as np
import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.datasets.prepared.format import (
    choose_encoding,
    decode_sample,
    encode_sample,
)


def smooth(bands=3, size=32, scale=4.0):
    """A picture without noise, which JPEG hardly changes."""
    rows, columns = torch.meshgrid(*[torch.arange(float(size))] * 2, indexing='ij')
    shares = [(band + 1) / bands for band in range(bands)]
    return torch.stack([scale * (rows + columns * share) for share in shares])


SAMPLE = {
    'label': torch.tensor(7),
    'bbox_xyxy': torch.tensor([[1.5, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]]),
    'timestamps': torch.tensor([[13.0, 6, 7]]),
    'path': 'a/b c.jpg',
    'weight': 0.1,
    'nothing': None,
}


@pytest.mark.parametrize('shape', [(3, 32, 32), (4, 3, 32, 32), (12, 3, 8, 8)])
@pytest.mark.parametrize('encoding', ['jpeg', 'integer', 'exact'])
def test_keys_types_and_shapes_come_back(shape, encoding):
    image = smooth(size=shape[-1]).round()
    if len(shape) == 4:
        # Each image of a series has a level of its own.
        image = torch.stack([(image + i).clamp(0, 255) for i in range(shape[0])])
    sample = decode_sample(encode_sample(SAMPLE | {'image': image}, encoding, 95))
    assert sample.keys() == SAMPLE.keys() | {'image'}
    for key, value in SAMPLE.items():
        if isinstance(value, torch.Tensor):
            assert sample[key].dtype == value.dtype
            assert torch.equal(sample[key], value)
        else:
            assert sample[key] == value
    assert sample['image'].shape == shape
    assert sample['image'].dtype == torch.float32
    tolerance = 4 if encoding == 'jpeg' else 0
    assert_close(sample['image'], image, atol=tolerance, rtol=0)


def test_empty_boxes_keep_their_shape():
    sample = {'image': smooth(), 'bbox_xyxy': torch.zeros(0, 4)}
    found = decode_sample(encode_sample(sample, 'jpeg', 90))['bbox_xyxy']
    assert found.shape == (0, 4)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ('low', 'high'), [(0, 255), (0, 10000), (-100, 30000), (0, 70000), (-70000, 70000)]
)
def test_integers_of_any_size(low, high):
    image = torch.linspace(low, high, 13 * 64).round().view(13, 8, 8)
    found = decode_sample(encode_sample({'image': image}, 'integer', 90))['image']
    assert torch.equal(found, image)


def test_integers_are_rounded():
    image = torch.tensor([0.4, 0.6, 1000.5, 2001.5]).view(1, 2, 2)
    found = decode_sample(encode_sample({'image': image}, 'integer', 90))['image']
    assert found.flatten().tolist() == [0, 1, 1000, 2002]


def test_exact_keeps_every_bit():
    image = torch.randn(5, 9, 7, generator=torch.Generator().manual_seed(0))
    found = decode_sample(encode_sample({'image': image}, 'exact', 90))['image']
    assert torch.equal(found, image)


@pytest.mark.parametrize(
    ('image', 'encoding'),
    [
        (smooth(3), 'jpeg'),
        (torch.stack([smooth(3)] * 2), 'jpeg'),
        (smooth(13), 'integer'),
        (100 * smooth(3), 'integer'),
        (smooth(3) - 50, 'integer'),
        (smooth(3) / 255, 'exact'),
    ],
)
def test_encoding_follows_the_values(image, encoding):
    assert choose_encoding({'image': image}) == encoding


def test_range_that_is_known_decides():
    black, dark = torch.zeros(3, 8, 8), smooth(3)
    assert choose_encoding({'image': black}, (0.0, 255.0)) == 'jpeg'
    assert choose_encoding({'image': dark}, (0.0, 10000.0)) == 'integer'
    assert choose_encoding({'image': dark}, ((0, 0, 0), (9, 9, 9))) == 'integer'


@pytest.mark.parametrize(
    ('image', 'encoding', 'message'),
    [
        (smooth(4), 'jpeg', 'an image of 4 bands .* cannot become a JPEG'),
        (
            smooth(3) * 10,
            'jpeg',
            r"from 0\.0 to .* cannot become a JPEG.*encoding='integer'",
        ),
        (
            smooth(3) * 1e9,
            'integer',
            "do not fit integers of 32 bits: pass encoding='exact'",
        ),
    ],
)
def test_images_that_do_not_fit(image, encoding, message):
    with pytest.raises(ValueError, match=message):
        encode_sample({'image': image}, encoding, 90)


def test_other_values_are_refused():
    message = r"'x' of the sample is a ndarray.*drop=\['x'\], or --drop\+=x on"
    with pytest.raises(ValueError, match=message):
        encode_sample({'image': smooth(), 'x': np.zeros(3)}, 'jpeg', 90)


def test_sample_without_its_texts():
    files = encode_sample({'image': smooth()}, 'jpeg', 90)
    del files['json']
    with pytest.raises(ValueError, match=r"no json, only \['image.jpg'\]"):
        decode_sample(files)
