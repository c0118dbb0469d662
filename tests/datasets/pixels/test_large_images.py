"""Large images, and small files that claim to be large."""

import struct

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError

from torchgeo_explora.datasets import CSVDataset, ImageFolder, UnreadableImageError
from torchgeo_explora.datasets.pixels import image_file
from torchgeo_explora.datasets.pixels.image_file import ImageFile
from torchgeo_explora.datasets.pixels.picture import fit_square
from torchgeo_explora.datasets.pixels.raster_blocks import RasterBlocks
from torchgeo_explora.datasets.pixels.raster_file import open_raster
from torchgeo_explora.datasets.tables.csv_dataset import CSVColumns

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True)
def pillow(monkeypatch):
    """Leave Pillow's limit as it was; images above 20,000 pixels are too large."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)


def bare_tiff(width, height, count, bits=16):
    """Return a TIFF of less than 300 bytes that claims a size."""
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, count),
        (278, 4, 1, height),
        (279, 4, 1, 100),
    ]
    entries = b''.join(struct.pack('<HHII', *tag) for tag in tags)
    body = struct.pack('<H', len(tags)) + entries + struct.pack('<I', 0)
    return b'II*\0' + struct.pack('<I', 8) + body + bytes(100)


@pytest.mark.parametrize('size', [(2**30, 2**30, 1), (60_000, 60_000, 8)])
def test_what_a_header_claims_must_fit_into_the_file(tmp_path, size):
    path = tmp_path / 'a.tif'
    path.write_bytes(bare_tiff(*size))
    with pytest.raises(RasterioIOError, match=r'has \d+ bytes and claims'):
        open_raster(path)
    with pytest.raises(UnreadableImageError, match=r'a\.tif has \d+ bytes and claims'):
        ImageFolder(tmp_path)
    with pytest.raises(RasterioIOError, match='claims'):
        RasterBlocks(path, 16, 16, 64)


def test_picture_above_the_limit_names_the_option_and_scenes(tmp_path):
    values = np.arange(200 * 150 * 3, dtype='uint8').reshape(200, 150, 3)
    Image.fromarray(values).save(tmp_path / 'a.png')
    with pytest.raises(
        UnreadableImageError, match=r'\*max_pixels\* .*GeoTIFF .*SceneWindows'
    ):
        ImageFolder(tmp_path)
    with pytest.raises(
        UnreadableImageError, match=r'200 x 150 pixels, \*max_pixels\* is 29999'
    ):
        ImageFolder(tmp_path, max_pixels=29_999)
    image = ImageFolder(tmp_path, max_pixels=30_000)[0]['image']
    assert np.array_equal(image.numpy(), values.transpose(2, 0, 1))
    (tmp_path / 'metadata.csv').write_text('path\na.png\n')
    columns = CSVColumns(label=None, split=None)
    for stretch in (False, True):
        table = CSVDataset(
            tmp_path, columns=columns, max_pixels=30_000, stretch=stretch
        )
        assert torch.equal(table[0]['image'], image)


def write(path, values, **profile):
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        tiled=True,
        **profile,
    ) as file:
        file.write(values)


@pytest.fixture
def waves():
    """Bands of 1200 x 1000 pixels whose means of 10 x 10 differ."""
    rows, columns = np.mgrid[:1200, :1000] / 100
    smooth = np.stack([np.sin(rows + columns), np.cos(rows - columns)])
    noise = np.random.default_rng(0).normal(0, 300, (2, 1200, 1000))
    return (3000 + 1500 * smooth + noise).clip(1, None).astype('uint16')


def test_large_raster_is_read_at_a_fraction_of_its_size(tmp_path, waves, monkeypatch):
    write(tmp_path / 'a.tif', waves)
    whole = ImageFolder(tmp_path, size=50)[0]['image']
    monkeypatch.setattr(image_file, '_LARGE', 1000)
    shapes = []
    dataset = ImageFolder(tmp_path, size=50)
    monkeypatch.setattr(
        ImageFile,
        '_read_raster',
        lambda self, *arguments: (
            shapes.append((values := read(self, *arguments)).shape) or values
        ),
    )
    image = dataset[0]['image']
    assert shapes == [(2, 120, 100)]
    assert (image - whole).abs().max() < 60
    assert (image - whole).abs().mean() < 15


read = ImageFile._read_raster


def test_no_data_stays_apart_at_a_fraction_of_the_size(tmp_path, waves, monkeypatch):
    monkeypatch.setattr(image_file, '_LARGE', 1000)
    waves[:, :400] = 65535
    write(tmp_path / 'a.tif', waves, nodata=65535)
    image = ImageFolder(tmp_path, size=50)[0]['image']
    # The centre of 60 rows, of which the first 20 are empty.
    assert not image[:, :15].any()
    assert image[:, 16:].min() > 1000
    assert image.max() < 5500


def test_giant_is_read_from_its_overviews(tmp_path, waves, monkeypatch):
    write(tmp_path / 'a.tif', waves)
    monkeypatch.setattr(image_file, '_LARGE', 1000)
    monkeypatch.setattr(image_file, '_MOST_VALUES', 200_000)
    dataset = ImageFolder(tmp_path, size=50)
    with pytest.raises(UnreadableImageError, match='1200 x 1000 pixels, too many'):
        dataset[0]
    with rasterio.open(tmp_path / 'a.tif', 'r+') as file:
        file.build_overviews([2, 4, 8], Resampling.average)
    assert dataset[0]['image'].shape == (2, 50, 50)


def test_colours_of_a_palette_are_not_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, '_LARGE', 1000)
    values = np.where(np.mgrid[:400, :400][0] < 200, 1, 200).astype('uint8')
    write(tmp_path / 'a.tif', values[None], photometric='palette')
    with rasterio.open(tmp_path / 'a.tif', 'r+') as file:
        file.write_colormap(1, {1: (255, 0, 0), 200: (0, 0, 255), 100: (0, 255, 0)})
    with ImageFile(tmp_path / 'a.tif') as file:
        expected = fit_square(file.read(), 20)
    image = ImageFolder(tmp_path, size=20)[0]['image']
    assert torch.equal(image, expected)
    assert not image[1].any()


@pytest.mark.parametrize('kind', ['folder', 'blocks'])
def test_lists_of_bands_are_fetched_once(tmp_path, monkeypatch, kind):
    """GDAL is asked for each band: of 224 bands, 224 x 224 times."""
    write(tmp_path / 'a.tif', np.ones((224, 4, 4), 'uint16'))
    asked = []
    opened = rasterio.open

    class Spy:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            if name in ('descriptions', 'colorinterp', 'dtypes', 'mask_flag_enums'):
                asked.append(name)
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

    monkeypatch.setattr(rasterio, 'open', lambda *a, **k: Spy(opened(*a, **k)))
    if kind == 'folder':
        with ImageFile(tmp_path / 'a.tif') as file:
            assert len(file.bands) == 224
    else:
        assert len(RasterBlocks(tmp_path / 'a.tif', 4, 4, 4).channels) == 224
    assert 0 < len(asked) <= 8
