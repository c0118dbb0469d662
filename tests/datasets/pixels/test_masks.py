"""No data means the same in folders, scenes and maps, however a file marks it."""

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.enums import ColorInterp

from torchgeo_explora.datasets import CSVDataset, ImageFolder, SceneWindows
from torchgeo_explora.datasets.pixels.raster_blocks import RasterBlocks
from torchgeo_explora.datasets.tables.csv_dataset import CSVColumns

pytestmark = pytest.mark.filterwarnings('ignore')

GRID = rasterio.transform.from_origin(5e5, 5e6, 10, 10)
SIDE = 64
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[:16, :48] = True


def pixels(dtype='uint8', bands=3):
    shape = (bands, SIDE, SIDE)
    return np.random.default_rng(0).integers(20, 200, shape).astype(dtype)


def write(path, values, **profile):
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        crs='EPSG:32632',
        transform=GRID,
        **profile,
    ) as file:
        file.write(values)


def write_marked(path, kind, dtype='uint8'):
    """Write three bands without data in `HOLE`, where they are not 0."""
    values = pixels(dtype)
    most = np.iinfo(dtype).max
    if kind == 'value':
        values[:, HOLE] = most
        write(path, values, nodata=most)
    elif kind == 'alpha':
        alpha = np.where(HOLE, 0, most).astype(dtype)[None]
        write(path, np.concatenate([values, alpha]), photometric='RGB', alpha='YES')
    else:
        inside = kind == 'inside'
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
            write(path, values)
            with rasterio.open(path, 'r+') as file:
                file.write_mask(~HOLE)
        assert path.with_name(f'{path.name}.msk').exists() != inside
    return values


@pytest.fixture(params=['value', 'alpha', 'inside', 'beside'])
def marked(request, tmp_path):
    """The file, and its three bands with 0 where there is no data."""
    values = write_marked(tmp_path / 'a.tif', request.param)
    return tmp_path / 'a.tif', np.where(HOLE, 0, values).astype('float32')


def test_folder_has_zero_where_there_is_no_data(marked):
    path, expected = marked
    dataset = ImageFolder(path.parent)
    assert len(dataset.bands) == 3
    assert dataset.no_data == 0
    assert np.array_equal(dataset[0]['image'].numpy(), expected)
    (path.parent / 'metadata.csv').write_text('path\na.tif\n')
    table = CSVDataset(path.parent, columns=CSVColumns(label=None, split=None))
    assert table.no_data == 0
    assert np.array_equal(table[0]['image'].numpy(), expected)


def test_resized_pixels_are_not_mixed_with_what_a_mask_hides(marked):
    path, _ = marked
    image = ImageFolder(path.parent, size=32)[0]['image'].numpy()
    assert not image[:, :8, :24].any()
    assert image[:, 9:].min() >= 20
    assert image[:, :, 25:].min() >= 20
    assert image[image > 0].min() >= 20


def test_scene_has_zero_where_there_is_no_data(marked):
    path, expected = marked
    dataset = SceneWindows(path, size=64, length=1, max_invalid=0.5)
    assert len(dataset.bands) == 3
    assert dataset.no_data == 0
    assert np.array_equal(dataset[0]['image'].numpy(), expected)
    assert dataset.index.table['windows'].to_pylist() == [1]


def test_masks_beside_a_file_are_seen_under_torchgeos_command(marked, monkeypatch):
    """The command sets this for all of GDAL, which then sees no file beside another."""
    monkeypatch.setenv('GDAL_DISABLE_READDIR_ON_OPEN', 'EMPTY_DIR')
    test_folder_has_zero_where_there_is_no_data(marked)
    (marked[0].parent / 'metadata.csv').unlink()
    test_scene_has_zero_where_there_is_no_data(marked)


def test_windows_of_a_scene_avoid_what_a_mask_hides(marked):
    path, _ = marked
    dataset = SceneWindows(path, size=16, length=50, max_invalid=0)
    for sample in dataset:
        assert sample['image'].min() >= 20


def test_warped_scene_has_zero_where_there_is_no_data(marked):
    path, expected = marked
    dataset = SceneWindows(
        path, size=32, length=20, crs='EPSG:32633', max_invalid=0.9, seed=1
    )
    images = torch.stack([sample['image'] for sample in dataset])
    empty = (images == 0).all(1)
    assert 0 < empty.float().mean() < 0.9
    # What hides the pixels would show as 255, or as one of them darkened.
    assert images.amin(1)[~empty].min() >= 18
    assert images.max() <= expected.max()


def test_series_has_zero_where_there_is_no_data(marked):
    path, expected = marked
    for day in ('20200101', '20200202'):
        for file in list(path.parent.glob('a.tif*')):
            name = f's{day}{file.name.removeprefix("a")}'
            (path.parent / name).write_bytes(file.read_bytes())
    dataset = SceneWindows(
        path.parent / 's*.tif', size=64, length=1, max_invalid=0.5, times=2
    )
    assert np.array_equal(dataset[0]['image'].numpy(), [expected, expected])


def test_map_has_nothing_where_there_is_no_data(marked):
    path, expected = marked
    sample = RasterBlocks(path, 16, 16, 64)[0]
    assert np.array_equal(sample['valid'].numpy(), ~HOLE)
    image = sample['image'].numpy()
    assert image.shape == (3, SIDE, SIDE)
    assert np.isnan(image[:, HOLE]).all()
    assert np.array_equal(np.nan_to_num(image), expected)


def test_value_without_data_of_a_map_can_be_given(tmp_path):
    values = pixels('uint16')
    values[:, HOLE] = 65535
    write(tmp_path / 'a.tif', values)
    assert RasterBlocks(tmp_path / 'a.tif', 16, 16, 64)[0]['valid'].all()
    sample = RasterBlocks(tmp_path / 'a.tif', 16, 16, 64, nodata=65535)[0]
    assert np.array_equal(sample['valid'].numpy(), ~HOLE)


def test_one_band_without_data_does_not_hide_the_others(tmp_path):
    values = pixels()
    values[1, HOLE] = 255
    write(tmp_path / 'a.tif', values, nodata=255)
    sample = RasterBlocks(tmp_path / 'a.tif', 16, 16, 64)[0]
    assert sample['valid'].all()
    assert np.array_equal(sample['image'].isnan()[1].numpy(), HOLE)
    image = ImageFolder(tmp_path)[0]['image']
    assert np.array_equal((image == 0)[1].numpy(), HOLE)


@pytest.fixture
def infrared(tmp_path):
    """Four bands of bytes, the last of which GDAL labels as alpha."""
    values = pixels(bands=4)
    values[3, 0, 0] = 0
    write(tmp_path / 'a.tif', values, photometric='RGB', alpha='YES')
    with rasterio.open(tmp_path / 'a.tif') as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    return tmp_path / 'a.tif', values.astype('float32')


def test_infrared_that_is_labelled_as_alpha_is_a_band(infrared):
    path, values = infrared
    assert np.array_equal(ImageFolder(path.parent)[0]['image'].numpy(), values)
    scene = SceneWindows(path, size=64, length=1)
    assert np.array_equal(scene[0]['image'].numpy(), values)
    sample = RasterBlocks(path, 16, 16, 64)[0]
    assert np.array_equal(sample['image'].numpy(), values)
    assert sample['valid'].all()


@pytest.mark.parametrize('times', [1, 2])
def test_infrared_that_is_labelled_as_alpha_hides_no_colours(infrared, times):
    """A warped scene, and a series, are those of a file without the label."""
    path, values = infrared
    values[3, 24:40] = 0
    images = []
    for photometric in ('RGB', 'MINISBLACK'):
        folder = path.parent / photometric
        folder.mkdir()
        options = {'alpha': 'YES'} if photometric == 'RGB' else {}
        for day in range(times):
            write(
                folder / f'2020010{day + 1}.tif',
                values.astype('uint8'),
                photometric=photometric,
                **options,
            )
        dataset = SceneWindows(
            folder,
            size=32,
            length=3,
            crs='EPSG:32633',
            max_invalid=0.5,
            times=times,
            bands=[1, 2, 3, 4],
        )
        images.append(torch.stack([sample['image'] for sample in dataset]))
    assert torch.equal(*images)


def test_alpha_with_another_name_is_a_band(tmp_path):
    write_marked(tmp_path / 'a.tif', 'alpha')
    with rasterio.open(tmp_path / 'a.tif', 'r+') as file:
        file.descriptions = ('red', 'green', 'blue', 'water')
    assert ImageFolder(tmp_path).bands == ('red', 'green', 'blue', 'water')


def test_files_with_and_without_alpha_are_alike(tmp_path):
    write_marked(tmp_path / 'a.tif', 'alpha')
    write(tmp_path / 'b.tif', pixels(), photometric='RGB')
    dataset = ImageFolder(tmp_path)
    assert dataset.bands == ('red', 'green', 'blue')
    assert dataset[0]['image'].shape == dataset[1]['image'].shape
    assert dataset.no_data == 0
    scenes = SceneWindows(tmp_path, size=16, length=4)
    assert scenes.index.table.num_rows == 2


@pytest.mark.parametrize(
    ('suffix', 'mode'), [('png', 'RGBA'), ('png', 'LA'), ('png', 'P'), ('webp', 'RGBA')]
)
def test_transparent_pixels_of_pictures_are_zero(tmp_path, suffix, mode):
    alpha = Image.fromarray(np.where(HOLE, 0, 255).astype('uint8'))
    picture = Image.fromarray(pixels().transpose(1, 2, 0))
    options = {'lossless': True, 'exact': True} if suffix == 'webp' else {}
    if mode == 'P':
        picture = picture.quantize(15)
        picture.paste(15, mask=alpha.point(lambda value: 255 - value))
        options = {'transparency': 15}
    else:
        picture = picture.convert(mode.removesuffix('A'))
        picture.putalpha(alpha)
    picture.save(tmp_path / f'a.{suffix}', **options)
    dataset = ImageFolder(tmp_path)
    assert dataset.no_data == 0
    image = dataset[0]['image'].numpy()
    assert not image[:, HOLE].any()
    assert image[:, ~HOLE].min() > 0
    assert len(image) == (1 if mode == 'LA' else 3)
