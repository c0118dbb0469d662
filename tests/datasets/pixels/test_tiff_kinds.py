"""TIFF files mean what a viewer shows, however their pixels are stored."""

import numpy as np
import pytest
import rasterio
from PIL import Image

from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.datasets.pixels.image_file import ImageFile

pytestmark = pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
RAMP = np.arange(64, dtype='uint8').reshape(8, 8)


def read(path):
    with ImageFile(path) as file:
        return file.bands, file.read().numpy()


def write(path, values, **profile):
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        width=8,
        height=8,
        count=1,
        dtype='uint8',
        **profile,
    ) as file:
        file.write(values[None])


@pytest.mark.parametrize('bits', [1, 2, 4, 7])
def test_values_of_few_bits_become_bytes(tmp_path, bits):
    top = 2**bits - 1
    write(tmp_path / 'a.tif', RAMP % (top + 1), NBITS=bits)
    bands, image = read(tmp_path / 'a.tif')
    assert len(bands) == 1
    assert np.array_equal(image[0], np.rint(RAMP % (top + 1) * (255 / top)))


def test_one_bit_is_black_and_white(tmp_path):
    picture = Image.fromarray(RAMP * 4).convert('1')
    picture.save(tmp_path / 'a.tif')
    assert np.array_equal(read(tmp_path / 'a.tif')[1][0], np.asarray(picture) * 255)


def test_palette_becomes_colours(tmp_path):
    picture = Image.fromarray(np.stack([RAMP, 255 - RAMP, RAMP // 2], -1))
    picture = picture.quantize(64)
    picture.save(tmp_path / 'a.tif')
    bands, image = read(tmp_path / 'a.tif')
    assert bands == ('red', 'green', 'blue')
    expected = np.asarray(picture.convert('RGB')).transpose(2, 0, 1)
    assert np.array_equal(image, expected)
    with ImageFile(tmp_path / 'a.tif') as file:
        assert np.array_equal(file.read([2]).numpy(), expected[2:])


@pytest.mark.parametrize('by', ['gdal', 'pillow'])
def test_white_as_the_lowest_value_is_inverted(tmp_path, by):
    if by == 'gdal':
        write(tmp_path / 'a.tif', 255 - RAMP, photometric='MINISWHITE')
    else:
        Image.fromarray(RAMP).save(tmp_path / 'a.tif', tiffinfo={262: 0})
    assert np.array_equal(read(tmp_path / 'a.tif')[1][0], RAMP)


def test_printing_inks_become_colours(tmp_path):
    picture = Image.fromarray(
        np.stack([RAMP, RAMP // 2, RAMP // 4, RAMP // 8], -1), 'CMYK'
    )
    picture.save(tmp_path / 'a.tif')
    bands, image = read(tmp_path / 'a.tif')
    assert bands == ('red', 'green', 'blue')
    expected = np.asarray(picture.convert('RGB')).transpose(2, 0, 1)
    np.testing.assert_allclose(image, expected, atol=2)


def test_value_without_data_is_that_of_the_file(tmp_path):
    write(tmp_path / 'a.tif', RAMP % 16, NBITS=4, nodata=5)
    image = read(tmp_path / 'a.tif')[1][0]
    assert np.array_equal(image == 0, np.isin(RAMP % 16, (0, 5)))


def test_further_pages_are_told_of(tmp_path):
    pages = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    pages[0].save(tmp_path / 'a.tif', save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match=r'a\.tif has 2 pages, of which only'):
        dataset = ImageFolder(tmp_path)
    assert np.array_equal(dataset[0]['image'][0].numpy(), RAMP)
