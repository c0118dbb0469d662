"""Files are opened as what their names say, and never as what refers to others."""

import http.server
import os
import socket
import threading

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.errors import RasterioIOError
from rasterio.io import MemoryFile

from torchgeo_explora.datasets import ImageFolder, UnreadableImageError
from torchgeo_explora.datasets.pixels import raster_file
from torchgeo_explora.datasets.pixels.picture import open_picture
from torchgeo_explora.datasets.pixels.raster_blocks import RasterBlocks
from torchgeo_explora.datasets.pixels.raster_file import open_raster, open_tiff
from torchgeo_explora.datasets.prepared.format import decode_sample
from torchgeo_explora.datasets.scenes.band_stack import stack_bands
from torchgeo_explora.datasets.scenes.stac import OTHER_ASSET, stac_scenes

pytestmark = pytest.mark.filterwarnings('ignore')

VRT = """<VRTDataset rasterXSize="8" rasterYSize="8">
<VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="0">{}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""
WMS = """<GDAL_WMS><Service name="TMS"><ServerUrl>{}/${{z}}.png</ServerUrl></Service>
<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY><LowerRightX>8
</LowerRightX><LowerRightY>8</LowerRightY><SizeX>8</SizeX><SizeY>8</SizeY></DataWindow>
<BandsCount>3</BandsCount></GDAL_WMS>"""


def save(path, driver='GTiff', count=1):
    with rasterio.open(
        path, 'w', driver=driver, width=8, height=8, count=count, dtype='uint8'
    ) as file:
        file.write(np.full((count, 8, 8), 7, 'uint8'))
    return path


@pytest.fixture
def server():
    """An address, and the list of what was asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            """Say nothing."""

    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{found.server_port}', asked
        found.shutdown()


@pytest.fixture(params=['vrt', 'wms', 'remote vrt'])
def disguised(request, tmp_path, server):
    """The text of a raster that refers to another place."""
    address, asked = server
    secret = save(tmp_path / 'secret.bin')
    yield {
        'vrt': VRT.format(secret),
        'wms': WMS.format(address),
        'remote vrt': VRT.format(f'/vsicurl/{address}/a.tif'),
    }[request.param]
    assert not asked


@pytest.mark.parametrize('suffix', ['.tif', '.TIFF', '.jp2', '.png', '.jpg', '.webp'])
def test_image_that_is_a_reference_is_not_opened(disguised, tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    path.write_text(disguised)
    with pytest.raises(RasterioIOError):
        open_raster(path)
    with pytest.raises(RasterioIOError):
        RasterBlocks(path, 8, 8, 8)
    with pytest.raises(RasterioIOError):
        stack_bands({'a': str(path), 'b': str(path)})


@pytest.mark.parametrize('suffix', ['.tif', '.png'])
def test_reference_in_an_image_folder_is_not_opened(disguised, tmp_path, suffix):
    (tmp_path / 'images').mkdir()
    (tmp_path / f'images/a{suffix}').write_text(disguised)
    with pytest.raises(UnreadableImageError, match=rf'a\{suffix}'):
        ImageFolder(tmp_path / 'images')


def test_reference_inside_a_shard_is_not_opened(disguised):
    with pytest.raises(RasterioIOError):
        decode_sample({'json': b'{}', 'image.tif': disguised.encode()})


def test_virtual_raster_that_is_named_so_is_opened(tmp_path):
    source = save(tmp_path / 'a.tif')
    (tmp_path / 'a.vrt').write_text(VRT.format(source))
    assert RasterBlocks(tmp_path / 'a.vrt', 8, 8, 8)[0]['image'].unique() == 7
    with open_raster(VRT.format(source)) as file:
        assert file.read().mean() == 7


@pytest.mark.parametrize(
    ('suffix', 'driver'),
    [('.tif', 'GTiff'), ('.png', 'PNG'), ('.jp2', 'JP2OpenJPEG'), ('.img', 'HFA')],
)
def test_each_kind_is_opened_by_its_driver(tmp_path, suffix, driver):
    with open_raster(save(tmp_path / f'a{suffix}', driver)) as file:
        assert file.driver == driver


@pytest.mark.parametrize('href', ['a.vrt', '<VRTDataset>http://host</VRTDataset>'])
def test_virtual_raster_in_a_stac_item_is_not_opened(tmp_path, href):
    (tmp_path / 'a.vrt').write_text(VRT.format(save(tmp_path / 'a.tif')))
    item = f'{{"type": "Feature", "id": "x", "assets": {{"b": {{"href": "{href}"}}}}}}'
    (tmp_path / 'item.json').write_text(item)
    scenes, problems = stac_scenes(str(tmp_path / 'item.json'), ['b'], None)
    assert not scenes
    assert problems == [('x', OTHER_ASSET)]


def test_picture_of_a_format_that_starts_a_program_is_not_opened(tmp_path):
    """Pillow draws PostScript by Ghostscript, whatever the file's name is."""
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.eps')
    path = (tmp_path / 'a.eps').rename(tmp_path / 'a.png')
    with pytest.raises(UnreadableImageError, match=r'a\.png'), open_picture(str(path)):
        pass
    with pytest.raises(UnreadableImageError, match=r'a\.png'):
        ImageFolder(tmp_path)


def test_wrong_suffix_of_a_picture_does_no_harm(tmp_path):
    Image.new('RGB', (8, 8), (1, 2, 3)).save(tmp_path / 'a.jpg', 'png')
    image = ImageFolder(tmp_path)[0]['image']
    assert torch.equal(image[:, 0, 0], torch.tensor([1.0, 2.0, 3.0]))


def test_thousands_of_bands_are_refused_before_they_are_looked_at(tmp_path):
    path = tmp_path / 'a.tif'
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        width=1,
        height=1,
        count=5000,
        dtype='uint8',
        SPARSE_OK=True,
    ):
        pass
    with pytest.raises(RasterioIOError, match='5000 bands, expected at most 4096'):
        open_raster(path)
    with pytest.raises(UnreadableImageError, match='5000 bands'):
        ImageFolder(tmp_path)
    with (
        MemoryFile(path.read_bytes()) as memory,
        pytest.raises(RasterioIOError, match='5000 bands'),
    ):
        open_tiff(memory)


def test_server_that_goes_silent_is_given_up(monkeypatch):
    """F29: GDAL would wait without end; what a user has set stays."""
    for option in raster_file._PATIENCE:
        monkeypatch.setenv(option, 'restored at the end')
        monkeypatch.delenv(option)
    monkeypatch.setenv('GDAL_HTTP_LOW_SPEED_TIME', '1')
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'http://127.0.0.1:{server.getsockname()[1]}/a.tif'
        with pytest.raises(RasterioIOError, match='last 1 seconds'):
            open_raster(address)
    for option, value in raster_file._PATIENCE.items():
        expected = '1' if option == 'GDAL_HTTP_LOW_SPEED_TIME' else value
        assert os.environ[option] == expected
