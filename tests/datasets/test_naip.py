import matplotlib.pyplot as plt
import numpy as np
import pytest
from torchgeo.datasets import DatasetNotFoundError, RGBBandsMissingError

from torchgeo_explora.datasets import NAIPLandCover
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError


@pytest.fixture
def root(fake, tmp_path):
    return fake('naip').write_naip(tmp_path)


@pytest.mark.parametrize(
    ('split', 'tiles', 'labels'),
    [
        ('train', [0, 1, 2, 3, 9], [2, 0, 1, 2, 0]),
        ('val', [4, 5], [0, 1]),
        ('test', [6, 7, 8], [1, 3, 2]),
        ('val+test', [4, 5, 6, 7, 8], [0, 1, 1, 3, 2]),
    ],
)
def test_splits_and_classes(root, split, tiles, labels):
    """The codes 1, 36, 61 and 195 are the classes 0 to 3."""
    dataset = NAIPLandCover(root, split, size=None)
    assert dataset.classes == ('1', '36', '61', '195')
    assert dataset.tiles.tolist() == tiles
    assert dataset.labels.tolist() == labels
    for sample, tile, label in zip(dataset, tiles, labels, strict=True):
        assert sample['label'] == label
        assert sample['path'] == str(root / f'supervised_50_100/{tile}tile.npy')
        assert sample['image'][:, 0, 0].tolist() == [10 * tile + b for b in range(3)]
        assert sample['image'].shape == (3, 10, 10)


def test_bands_and_size(root):
    dataset = NAIPLandCover(root, bands=('nir', 'red'), size=32)
    assert dataset[1]['image'].shape == (2, 32, 32)
    assert dataset[1]['image'][:, 5, 5].tolist() == [13, 10]


def test_missing_data(root, tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r'there is no .*y_50_100\.npy'):
        NAIPLandCover(tmp_path / 'nothing')
    (root / 'supervised_50_100').rename(root / 'elsewhere')
    with pytest.raises(DatasetNotFoundError, match=r'expected <number>tile\.npy in'):
        NAIPLandCover(root)
    assert len(NAIPLandCover(root, tiles='elsewhere')) == 5


def test_absent_tiles_are_counted_and_reported(root):
    (root / 'supervised_50_100/2tile.npy').unlink()
    with pytest.raises(FileNotFoundError, match=r'5 samples, of which 1 .*2tile\.npy'):
        NAIPLandCover(root)
    with pytest.warns(UserWarning, match='1 absent tiles'):
        dataset = NAIPLandCover(root, max_missing=0.2)
    assert dataset.tiles.tolist() == [0, 1, 3, 9]
    assert '2tile.npy' in (root / '.naip_train.report.csv').read_text()


@pytest.mark.filterwarnings('ignore:skipped sample')
@pytest.mark.parametrize('damage', ['cut', 'flat', 'bands'])
def test_unreadable_tile_is_named_or_skipped(root, damage):
    path = root / 'supervised_50_100/1tile.npy'
    if damage == 'cut':
        path.write_bytes(path.read_bytes()[:150])
    else:
        shape = (10, 10) if damage == 'flat' else (10, 10, 3)
        np.save(path, np.zeros(shape, np.uint8))
    bands = ('red', 'nir')
    with pytest.raises(UnreadableImageError, match=r'1tile\.npy'):
        NAIPLandCover(root, bands=bands)[1]
    dataset = NAIPLandCover(root, bands=bands, on_error='skip')
    assert dataset[1]['index'] == 2


def test_arrays_that_do_not_fit(root):
    np.save(root / 'splits.npy', np.zeros(9))
    with pytest.raises(ValueError, match=r'\(10,\) and splits\.npy \(9,\)'):
        NAIPLandCover(root)
    for damage in (b'', b'junk'):
        (root / 'splits.npy').write_bytes(damage)
        with pytest.raises(ValueError, match=r'splits\.npy is not an array of numbers'):
            NAIPLandCover(root)


def test_wrong_arguments(root):
    with pytest.raises(ValueError, match=r'\*split\*'):
        NAIPLandCover(root, 'evaluation')
    with pytest.raises(ValueError, match=r'\*size\*'):
        NAIPLandCover(root, size=0)
    with pytest.raises(ValueError, match=r"\*bands\* must be one of .*, not 'swir'"):
        NAIPLandCover(root, bands=['swir'])


def test_plot(root):
    dataset = NAIPLandCover(root)
    assert dataset.plot(dataset[0]).axes[0].get_title() == 'Label: 61'
    plt.close('all')
    dataset = NAIPLandCover(root, bands=('nir',))
    with pytest.raises(RGBBandsMissingError):
        dataset.plot(dataset[0])
