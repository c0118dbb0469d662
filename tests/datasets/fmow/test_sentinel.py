import matplotlib.pyplot as plt
import pytest
import torch
from torchgeo.datasets import DatasetNotFoundError, RGBBandsMissingError

from torchgeo_explora.augment import Quantize, UnitRange
from torchgeo_explora.datasets import FMoWSentinel
from torchgeo_explora.datasets.pixels import sentinel2
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError

SATMAE = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')


@pytest.fixture
def root(fake, tmp_path):
    return fake('fmow_sentinel').write_fmow_sentinel(tmp_path)


def test_rows_are_sorted_by_class_place_and_time(root):
    dataset = FMoWSentinel(root)
    names = [path.rpartition('/')[2] for path in dataset.paths]
    assert names == [
        'airport_2_7.tif',
        'airport_10_1.tif',  # of 2016
        'airport_10_0.tif',  # of 2018
        'barn_0_0.tif',
        'zoo_3_0.tif',
    ]
    assert dataset.labels.tolist() == [0, 0, 0, 6, 61]
    assert [int(sample['label']) for sample in dataset] == [0, 0, 0, 6, 61]
    assert dataset.places[0] == '3.010 0.020'
    assert FMoWSentinel(root, 'val').labels.tolist() == [0, 6]
    assert FMoWSentinel(root, 'test').labels.tolist() == [61]


def test_all_bands_in_the_order_of_the_file(root):
    sample = FMoWSentinel(root, size=None)[0]
    assert sample.keys() == {
        *('image', 'label', 'path', 'index', 'year', 'month', 'hour'),
        *('longitude', 'latitude'),
    }
    assert sample['image'].shape == (13, 20, 30)
    assert sample['image'][:, 0, 0].tolist() == [107 + 100 * i for i in range(13)]


def test_bands_are_chosen_by_name(root):
    """Counting from 1: B8A is the ninth band of the file, B11 the twelfth."""
    dataset = FMoWSentinel(root, bands=['B8A', 'B11', 'B2'])
    assert dataset.bands == ('B8A', 'B11', 'B02')
    assert dataset[1]['image'][:, 0, 0].tolist() == [901, 1201, 201]


def test_satmaes_ten_bands_are_those_it_keeps(root, golden):
    """SatMAE drops B01, B09 and B10 by their place in the file."""
    arrays, _ = golden('fmow_data')
    kept = arrays['out.sentinel.kept_bands.standard'].tolist()
    assert tuple(sentinel2.BANDS[i] for i in kept) == SATMAE
    pixels = FMoWSentinel(root, bands=SATMAE, size=None)[3]['image'][:, 0, 0]
    assert pixels.tolist() == [100 * (i + 1) for i in kept]


def test_value_range_is_satmaes(root, golden):
    """Clip, scale and cut to 8 bits: SatMAE's numbers from the same image."""
    arrays, _ = golden('fmow_data')
    raw = arrays['in.sentinel.img_hwc'].permute(2, 0, 1)
    low, high = FMoWSentinel(root).value_range
    unit = Quantize()(UnitRange(low, high)(raw))
    assert torch.equal(unit, arrays['out.sentinel.to_tensor_chw'])
    kept = arrays['out.sentinel.kept_bands.standard'].tolist()
    low, high = FMoWSentinel(root, bands=SATMAE).value_range
    unit = Quantize()(UnitRange(low, high)(raw[kept]))
    assert torch.equal(unit, arrays['out.sentinel.kept_tensor.standard'])


def test_statistics_are_satmaes(golden):
    arrays, _ = golden('fmow_data')
    assert list(sentinel2.MEAN.values()) == arrays['out.sentinel.mean'].tolist()
    assert list(sentinel2.STD.values()) == arrays['out.sentinel.std'].tolist()


def test_images_become_squares(root):
    assert FMoWSentinel(root)[0]['image'].shape == (13, 96, 96)
    assert FMoWSentinel(root, size=10)[0]['image'].shape == (13, 10, 10)


def test_bands_named_in_the_file_win(fake, root):
    path = root / 'fmow-sentinel/train/zoo/zoo_3/zoo_3_0.tif'
    names = (*sentinel2.BANDS[:8], 'B09', 'B10', 'B11', 'B12', 'B8A')
    fake('fmow_sentinel').write_tiff(path, 0, names=names)
    sample = FMoWSentinel(root, bands=('B8A', 'B11'))[4]
    assert sample['image'][:, 0, 0].tolist() == [1300, 1100]


def test_years_are_kept_from_first_to_last(root):
    assert FMoWSentinel(root, years=(2016, 2017)).labels.tolist() == [0, 0, 61]
    assert FMoWSentinel(root, years=(2018, 2018)).labels.tolist() == [0]
    with pytest.raises(DatasetNotFoundError, match=r'no image of the years \(2000'):
        FMoWSentinel(root, years=(2000, 2014))


def test_split_folders_may_lie_in_the_root(root):
    for path in (root / 'fmow-sentinel').iterdir():
        path.rename(root / path.name)
    assert FMoWSentinel(root)[0]['image'].shape == (13, 96, 96)


def test_other_csv_file(root):
    lines = (root / 'train.csv').read_text().splitlines()
    (root / 'filtered.csv').write_text('\n'.join(lines[:3]))
    assert FMoWSentinel(root, csv=root / 'filtered.csv').labels.tolist() == [0, 61]
    # The rows name images of another split, which are not there.
    with pytest.raises(FileNotFoundError, match='2 absent images'):
        FMoWSentinel(root, 'val', csv=root / 'filtered.csv')


def test_missing_columns_are_named(root):
    path = root / 'train.csv'
    path.write_text(path.read_text().replace('location_id', 'place'))
    message = r'train\.csv lacks the columns location_id: it has .*category, place'
    with pytest.raises(ValueError, match=message):
        FMoWSentinel(root)


def test_missing_csv_file_says_where_to_get_it(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r'test_gt\.csv.*purl\.stanford'):
        FMoWSentinel(tmp_path, 'test')


def test_problems_are_counted_and_reported(root):
    (root / 'fmow-sentinel/train/airport/airport_2/airport_2_7.tif').unlink()
    path = root / 'train.csv'
    text = path.read_text().replace(',zoo,', ',zebra,').replace('2015-07', '2015-99')
    path.write_text(text)
    message = (
        '5 samples, of which 3 .*1 files of an unknown class, 1 rows without a time,'
        ' 1 absent images'
    )
    with pytest.raises(FileNotFoundError, match=message):
        FMoWSentinel(root)
    with pytest.warns(UserWarning, match=message):
        assert FMoWSentinel(root, max_missing=0.6).labels.tolist() == [0, 0]
    lines = (root / '.train.csv.arrow.report.csv').read_text().splitlines()
    assert len(lines) == 4
    assert 'fmow-sentinel/train/airport/airport_2/airport_2_7.tif,absent' in lines[3]


@pytest.mark.filterwarnings('ignore:skipped sample')
@pytest.mark.parametrize('damage', ['bands', 'cut'])
def test_unreadable_image_is_named_or_skipped(fake, root, damage):
    path = root / 'fmow-sentinel/train/zoo/zoo_3/zoo_3_0.tif'
    if damage == 'bands':
        fake('fmow_sentinel').write_tiff(path, 0, bands=12)
    else:
        path.write_bytes(path.read_bytes()[:600])
    message = r'zoo_3_0\.tif.*' + (
        '12 bands, expected the 13' if damage == 'bands' else ''
    )
    with pytest.raises(UnreadableImageError, match=message):
        FMoWSentinel(root)[4]
    dataset = FMoWSentinel(root, on_error='skip')
    assert dataset[4]['index'] == 0
    assert dataset.skipped == [4]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'split': 'test_gt'}, r'\*split\*'),
        ({'size': 0}, r'\*size\* must be a positive'),
        ({'bands': ['B13']}, r"\*bands\* must be one of .*, not 'B13'"),
    ],
)
def test_wrong_arguments(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        FMoWSentinel(root, **arguments)


def test_plot_needs_true_colour(root):
    dataset = FMoWSentinel(root)
    figure = dataset.plot(dataset[0])
    assert figure.axes[0].get_title() == 'Label: airport'
    plt.close('all')
    dataset = FMoWSentinel(root, bands=['B08'])
    with pytest.raises(RGBBandsMissingError):
        dataset.plot(dataset[0])
