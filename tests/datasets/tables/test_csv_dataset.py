"""Images that a CSV file lists."""

import pickle
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.datasets import (
    CSVColumns,
    CSVDataset,
    NoSamplesError,
    Prepared,
    UnreadableImageError,
    prepare,
)

COLUMNS = CSVColumns(domain='site', place='patient')
#: Image i has the value 10 i. The split 'extra' has no labels.
ROWS = [
    ('a/0.png', 'water', 'train', 'north', 'p1'),
    ('a/1.png', 'crop', 'train', 'south', 'p2'),
    ('b/2.png', 'water', 'train', 'south', 'p2'),
    ('b/3.png', 'forest', 'val', 'east', 'p3'),
    ('4.png', '', 'extra', 'north', ''),
]


def write(root, rows=ROWS, header='path,label,split,site,patient', size=(8, 8)):
    root.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        path = root / row[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', size, (10 * number,) * 3).save(path)
    table(root, rows, header)
    return root


def table(root, rows, header='path,label,split,site,patient'):
    lines = [header, *(','.join(map(str, row)) for row in rows)]
    (root / 'metadata.csv').write_text('\n'.join(lines) + '\n')


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / 'images')


def test_split_labels_and_domains(root):
    dataset = CSVDataset(root, columns=COLUMNS)
    assert dataset.classes == ('crop', 'forest', 'water')
    assert dataset.labels.tolist() == [2, 0, 2]
    assert dataset.domain_names == ('east', 'north', 'south')
    assert dataset.domains.tolist() == [1, 2, 2]
    assert dataset.places == ['p1', 'p2', 'p2']
    assert dataset.paths[2] == str(root / 'b/2.png')
    sample = dataset[2]
    assert sample.keys() == {'image', 'path', 'label', 'domain', 'index'}
    assert (sample['image'] == 20).all()
    assert sample['image'].shape == (3, 8, 8)
    assert (sample['label'], sample['domain'], sample['index']) == (2, 2, 2)
    # Classes and domains have the same numbers in every split.
    val = CSVDataset(root, 'val', columns=COLUMNS)
    assert (val.classes, val.labels.tolist()) == (dataset.classes, [1])
    assert val.domains.tolist() == [0]


def test_further_columns_are_metadata(tmp_path):
    """Names have the same numbers in all splits; an empty field is -1 or NaN."""
    rows = [
        ('0.png', 'train', 'wet', '3', '0.5'),
        ('1.png', 'train', '', '', ''),
        ('2.png', 'val', 'dry', '5', '2'),
    ]
    root = write(tmp_path / 'images', rows, 'path,split,season,zone,gsd')
    columns = CSVColumns(label=None, metadata=('season', 'zone', 'gsd'))
    first, empty = CSVDataset(root, columns=columns)
    (other,) = CSVDataset(root, 'val', columns=columns)
    names = ('season', 'zone', 'gsd')
    assert [first[name].item() for name in names] == [1, 3, 0.5]
    assert [empty[name].item() for name in names[:2]] == [-1, -1]
    assert empty['gsd'].isnan()
    assert [other[name].item() for name in names] == [0, 5, 2.0]
    assert first['season'].dtype == first['zone'].dtype == torch.int64
    assert other['gsd'].dtype == torch.float32


def test_metadata_that_hide_another_key_are_refused():
    with pytest.raises(ValueError, match=r'\*metadata\* names image'):
        CSVColumns(metadata=('image',))


def test_labels_and_splits_are_optional(root):
    extra = CSVDataset(root, 'extra')
    assert extra.labels is None
    assert extra[0].keys() == {'image', 'path', 'index'}
    table(root, [row[:1] for row in ROWS], 'path')
    dataset = CSVDataset(root, columns=CSVColumns(label=None, split=None))
    assert len(dataset) == 5
    assert dataset.classes == ()
    assert dataset.domains is None
    assert dataset.places == [''] * 5


def test_numbers_are_class_numbers(root):
    rows = [(path, number, 'train') for number, (path, *_) in enumerate(ROWS)]
    table(root, rows, 'path,label,split')
    dataset = CSVDataset(root)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.classes == ('0', '1', '2', '3', '4')
    assert CSVDataset(root, classes='abcde').classes == 'abcde'
    with pytest.raises(ValueError, match='the label 3: expected numbers from 0 to 2'):
        CSVDataset(root, classes='abc')


def test_classes_in_another_order(root):
    names = ('water', 'forest', 'crop')
    assert CSVDataset(root, classes=names).labels.tolist() == [0, 2, 0]
    with pytest.raises(ValueError, match=r'the label crop: .*the names in \*classes\*'):
        CSVDataset(root, classes=names[:2])


def test_domains_that_are_numbers_are_kept(root):
    table(root, [('4.png', 7), ('a/0.png', 30), ('a/1.png', '')], 'path,site')
    columns = CSVColumns(label=None, split=None, domain='site')
    dataset = CSVDataset(root, columns=columns)
    assert dataset.domains.tolist() == [7, 30, -1]
    assert dataset.domain_names == ()


def test_columns_and_file_have_any_name(root):
    table(root, [('4.png', 'x', 'day')], 'file,species,part')
    (root / 'metadata.csv').rename(root.parent / 'list.csv')
    columns = CSVColumns(path='file', label='species', split='part')
    dataset = CSVDataset(root, 'day', '../list.csv', columns)
    assert dataset.classes == ('x',)
    assert (root.parent / '.list.csv.arrow').exists()


def test_bands_of_geotiffs(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 9000, (2, 3, 12, 8)).astype('uint16')
    for number, names in enumerate((('B02', 'B03', 'B04'), ('B04', 'B03', 'B02'))):
        profile = {'count': 3, 'height': 12, 'width': 8, 'dtype': 'uint16'}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with rasterio.open(tmp_path / f'{number}.tif', 'w', **profile) as file:
                file.write(pixels[number])
                file.descriptions = names
    table(tmp_path, [('0.tif', 'a'), ('1.tif', 'b')], 'path,label')
    columns = CSVColumns(split=None)
    dataset = CSVDataset(tmp_path, columns=columns, bands=['B02', 'B03'])
    assert dataset.bands == ('B02', 'B03')
    assert dataset.value_range == (0, 10000)
    assert not dataset.range_known
    assert np.array_equal(dataset[1]['image'], pixels[1, [2, 1]])
    square = CSVDataset(tmp_path, columns=columns, size=4, value_range=(0, 9000))
    assert square[0]['image'].shape == (3, 4, 4)
    assert square.range_known


def test_cropped_or_stretched(tmp_path):
    root = write(tmp_path, ROWS[:1], size=(16, 8))
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :4] = 255
    Image.fromarray(pixels).save(root / 'a/0.png')
    assert CSVDataset(root, size=8)[0]['image'].max() == 0
    stretched = CSVDataset(root, size=8, stretch=True)[0]['image']
    assert (stretched[:, :, 0] == 255).all()
    assert (stretched[:, :, 3:] == 0).all()
    with pytest.raises(ValueError, match=r'\*stretch\* .*leave out \*bands\*'):
        CSVDataset(root, stretch=True, bands=['red'])


def test_boxes(tmp_path):
    root = write(tmp_path, ROWS[:2], size=(16, 8))
    rows = [('a/0.png', '4 0 12 8;0 0 2 2'), ('a/1.png', 'no_box')]
    table(root, rows, 'path,boxes')
    columns = CSVColumns(label=None, split=None, boxes='boxes')
    sample = CSVDataset(root, columns=columns)[0]
    assert sample['bbox_xyxy'].tolist() == [[4, 0, 12, 8], [0, 0, 2, 2]]
    assert sample['label'].tolist() == [1, 1]
    # The crop starts at column 4: one box fills it, the other one lies outside.
    dataset = CSVDataset(root, columns=columns, size=4)
    assert dataset[0]['bbox_xyxy'].tolist() == [[0, 0, 4, 4]]
    assert dataset[0]['label'].tolist() == [1]
    assert dataset[1]['bbox_xyxy'].shape == (0, 4)
    assert dataset.classes == ('background', 'object')
    with pytest.raises(ValueError, match='both boxes and label'):
        CSVDataset(root, columns=CSVColumns(label='path', split=None, boxes='boxes'))


@pytest.mark.parametrize(
    ('text', 'error', 'message'),
    [
        ('path,split\n4.png,train\n', ValueError, r'lacks the columns label: .*None'),
        ('', ValueError, 'cannot be read as a CSV file'),
        (
            'path,label,split\n,x,train\n',
            ValueError,
            r"row 1 of .*metadata\.csv has no path: .*'path'",
        ),
        (
            'path,label,split\n4.png,x,train\n../images.png,x,train\n',
            ValueError,
            r"row 2 of .* the path '../images.png', which is outside of .*\*root\*",
        ),
        (
            'path,label,split\n/etc/images.png,x,train\n',
            ValueError,
            'which is outside of',
        ),
        (
            'path,label,split\n4.png,x,train\na/0.png,x,train\n./a/../4.png,y,val\n',
            ValueError,
            r"rows 1 and 3 of .* the same path '4\.png': list each image once",
        ),
        *(
            (
                f'path,label,split\n4.png,0,train\na/0.png,{label},train\n',
                ValueError,
                r"'train' of .* labels up to \d+: expected .* below 1000000.*CSV file",
            )
            for label in (10**9, 10**30)
        ),
        (
            'path,label,split\n4.png,x,train\na/0.png,,train\n',
            ValueError,
            r"1 images without a label, such as .*a/0\.png: .*'label'.*label=None",
        ),
        (
            'path,label,split\n4.png,x,day\na/0.png,x,day\na/1.png,x,night\n',
            NoSamplesError,
            r"split 'train' of .* are 'day' \(2\), 'night' \(1\)",
        ),
        (
            'path,label,split\n4.png,x,train\n5.png,x,train\n',
            FileNotFoundError,
            r'2 samples, of which 1 .*1 absent images.*5\.png',
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_named(root, text, error, message):
    (root / 'metadata.csv').write_text(text)
    with pytest.raises(error, match=message):
        CSVDataset(root)


def test_absolute_paths_inside_of_the_root(root):
    table(root, [(root / '4.png', 'x', 'train')], 'path,label,split')
    assert CSVDataset(root).paths == [str(root / '4.png')]


def test_no_file(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r'metadata\.csv: \*csv\* must name'):
        CSVDataset(tmp_path)


def test_index_follows_the_file_and_the_columns(root):
    assert len(CSVDataset(root)) == 3
    assert (root / '.metadata.csv.arrow').exists()
    table(root, ROWS[:2])
    assert len(CSVDataset(root)) == 2
    assert CSVDataset(root, columns=CSVColumns(label='site')).classes[0] == 'north'


def test_unreadable_images(root):
    (root / 'a/0.png').write_bytes(b'no image')
    with pytest.raises(UnreadableImageError, match=r'a/0\.png'):
        CSVDataset(root)
    with pytest.warns(UserWarning, match='skipped sample 0'):
        dataset = CSVDataset(root, on_error='skip')
    assert dataset[0]['index'] == 1
    assert dataset.skipped == [0]


def test_copies_and_prepared_form(root, tmp_path):
    dataset = CSVDataset(root, columns=COLUMNS)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1]['image'], dataset[1]['image'])
    prepare(dataset, tmp_path / 'out', encoding='integer', progress=False)
    prepared = Prepared(tmp_path / 'out')
    assert torch.equal(prepared[1]['image'], dataset[1]['image'])
    assert prepared[1]['domain'] == 2
    assert list(prepared.classes) == list(dataset.classes)
    assert prepared.places == dataset.places


def test_plot(root):
    dataset = CSVDataset(root)
    assert dataset.plot(dataset[0]).axes[0].get_title() == 'Label: water'
    plt.close('all')
