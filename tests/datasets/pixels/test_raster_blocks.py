"""A raster in blocks, each with what its windows see."""

import numpy as np
import pytest
import rasterio
import torch

from tests.data.scenes import write_container
from torchgeo_explora.datasets.pixels.raster_blocks import CACHE, RasterBlocks
from torchgeo_explora.functional.windows import slide

pytestmark = pytest.mark.filterwarnings('ignore')


def write(path, values, nodata=None, crs='EPSG:32632'):
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        crs=crs,
        transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10),
        nodata=nodata,
    ) as file:
        file.write(values)
    return path


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(1, 255, (2, 53, 70)).astype('uint8')


@pytest.mark.parametrize(('size', 'stride', 'block'), [(16, 12, 24), (16, 8, 48)])
def test_blocks_together_are_the_whole_raster_through_windows(
    size, stride, block, values, tmp_path
):
    """A score that depends on a pixel's place in its window tells windows apart."""
    blocks = RasterBlocks(write(tmp_path / 'a.tif', values), size, stride, block)
    ramp = torch.linspace(0, 1, size)

    def score(windows):
        return windows * ramp + windows.mean((-2, -1), keepdim=True)

    whole = slide(torch.from_numpy(values.astype('float32'))[None], size, stride, score)
    joined = torch.zeros_like(whole)
    for sample in blocks:
        scores = slide(sample['image'][None], size, stride, score)
        inside_top, inside_left = sample['inside'].tolist()
        top, left = blocks.corner(int(sample['block']))
        part = scores[..., inside_top:, inside_left:][..., :block, :block]
        joined[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
        assert sample['image'].shape[-1] <= block + 2 * size
    torch.testing.assert_close(joined, whole)


def test_pixels_without_data_are_told(values, tmp_path):
    values[:, :10, :20] = 0
    blocks = RasterBlocks(write(tmp_path / 'a.tif', values, nodata=0), 16, 12, 60)
    valid = blocks[0]['valid']
    assert not valid[:10, :20].any()
    assert valid.sum() == valid.numel() - 200


def test_done_blocks_are_not_read_but_one_is_always_left(values, tmp_path):
    path = write(tmp_path / 'a.tif', values)
    blocks = RasterBlocks(path, 16, 12, 24, skip=lambda: {0, 2, 3})
    assert [int(sample['block']) for sample in blocks] == [1, 4, 5, 6, 7, 8]
    done = RasterBlocks(path, 16, 12, 24, skip=lambda: set(range(9)))
    assert done.numbers == [8]


def test_bad_arguments_say_what_to_do(values, tmp_path):
    with pytest.raises(FileNotFoundError, match='no raster at'):
        RasterBlocks(tmp_path / 'b.tif', 16, 12, 24)
    with pytest.raises(ValueError, match=r'multiple of the stride 12: take 24'):
        RasterBlocks(write(tmp_path / 'a.tif', values), 16, 12, 25)


def test_bands_are_chosen_by_number(values, tmp_path):
    path = write(tmp_path / 'a.tif', values)
    with rasterio.open(path, 'r+') as file:
        file.descriptions = ('red', 'nir')
    blocks = RasterBlocks(path, 16, 12, 84, channels=[2, 1, 2])
    assert blocks.bands == ('nir', 'red', 'nir')
    image = blocks[0]['image'].numpy()
    assert np.array_equal(image, values[[1, 0, 1]])
    with pytest.raises(
        ValueError, match=r'has 2 bands, but \*channels\* asks for \[0, 3\]'
    ):
        RasterBlocks(path, 16, 12, 24, channels=[0, 1, 3])


def test_gdal_keeps_little_of_a_file(values, tmp_path, monkeypatch):
    """Its own limit is a share of the machine's memory."""
    blocks = RasterBlocks(write(tmp_path / 'a.tif', values), 16, 12, 24)
    limits = []
    opened = rasterio.open

    def spy(path, driver):
        limits.append(rasterio.env.getenv()['GDAL_CACHEMAX'])
        return opened(path, driver=driver)

    monkeypatch.setattr(rasterio, 'open', spy)
    assert blocks[0]['image'].shape[0] == 2
    assert limits == [CACHE]


def test_container_names_what_is_in_it(tmp_path):
    write_container(tmp_path / 'a.gpkg')
    with pytest.raises(ValueError, match=r'no bands of its own.*tableNO.*tableYES'):
        RasterBlocks(tmp_path / 'a.gpkg', 16, 12, 24)
    blocks = RasterBlocks(f'GPKG:{tmp_path}/a.gpkg:tableNO', 16, 16, 64)
    # GeoPackage keeps red, green, blue and alpha.
    assert blocks[0]['image'].shape == (3, 64, 64)
