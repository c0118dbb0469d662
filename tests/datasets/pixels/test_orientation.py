"""Photos are upright, as in viewers."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from torchgeo_explora.datasets import CSVDataset, ImageFolder
from torchgeo_explora.datasets.tables.csv_dataset import CSVColumns

VALUES = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype('uint8')


def save(path, orientation, values=VALUES, **options):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(values).save(path, exif=exif, **options)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp'])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    path = tmp_path / f'a.{suffix}'
    options = {'lossless': True} if suffix == 'webp' else {}
    save(path, orientation, **options)
    with Image.open(path) as picture:
        lying = np.asarray(picture)
        upright = np.asarray(ImageOps.exif_transpose(picture))
    image = ImageFolder(tmp_path)[0]['image'].numpy()
    assert np.array_equal(image, upright.transpose(2, 0, 1))
    image = ImageFolder(tmp_path, upright=False)[0]['image'].numpy()
    assert np.array_equal(image, lying.transpose(2, 0, 1))


def test_sizes_are_compared_upright(tmp_path):
    save(tmp_path / 'a.png', 6)
    Image.fromarray(VALUES.transpose(1, 0, 2)).save(tmp_path / 'b.png')
    dataset = ImageFolder(tmp_path)
    assert dataset[0]['image'].shape == dataset[1]['image'].shape == (3, 9, 6)
    assert torch.equal(dataset[0]['image'], dataset[1]['image'].flip(2))


def test_orientation_of_listed_images_is_an_option(tmp_path):
    save(tmp_path / 'a.png', 6)
    (tmp_path / 'metadata.csv').write_text('path\na.png\n')
    columns = CSVColumns(label=None, split=None)
    shapes = [
        CSVDataset(tmp_path, columns=columns, **arguments)[0]['image'].shape
        for arguments in ({}, {'upright': False})
    ]
    assert shapes == [(3, 9, 6), (3, 6, 9)]


@pytest.mark.parametrize('value', [0, 9, 77])
def test_unknown_orientation_changes_nothing(tmp_path, value):
    save(tmp_path / 'a.png', value)
    image = ImageFolder(tmp_path)[0]['image'].numpy()
    assert np.array_equal(image, VALUES.transpose(2, 0, 1))


def test_damaged_exif_changes_nothing(tmp_path):
    options = {'exif': b'Exif\0\0II*\0\xff\xff\xff\xff'}
    Image.fromarray(VALUES).save(tmp_path / 'a.png', **options)
    image = ImageFolder(tmp_path)[0]['image'].numpy()
    assert np.array_equal(image, VALUES.transpose(2, 0, 1))


def test_transparent_pixels_turn_with_the_picture(tmp_path):
    alpha = np.full((6, 9, 1), 255, 'uint8')
    alpha[0, :4] = 0
    save(tmp_path / 'a.png', 6, np.concatenate([VALUES // 2 + 9, alpha], -1))
    image = ImageFolder(tmp_path)[0]['image']
    assert torch.equal((image == 0).all(0), torch.from_numpy(alpha[::-1, :, 0].T == 0))
