import json
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import default_collate
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.datasets import FMoWRGB
from torchgeo_explora.datasets.fmow.classes import CLASSES
from torchgeo_explora.datasets.fmow.index import open_index
from torchgeo_explora.datasets.fmow.regions import (
    COUNTRIES,
    SUB_REGIONS,
    country_metadata,
)
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError

# Context of the fake boxes, 16 x 12 pixels of 60 x 40: 16 / 60 takes half a box, so
# int(16 * 0.5 / 2) = 4 a side; 12 / 40 takes 0.3 of one, so int(12 * 0.3 / 2) = 1.
CROP = (16, 9, 40, 23)
#: Keys of time, place, country and view.
METADATA = {
    *('year', 'month', 'hour', 'longitude', 'latitude', 'country', 'sub_region'),
    *('gsd', 'cloud_cover', 'sun_elevation', 'off_nadir'),
}


@pytest.fixture
def root(fake, tmp_path):
    return fake('fmow').write_fmow(tmp_path)


def write_csv(path, *rows):
    path.write_text('\n'.join(['category,image_path,timestamp', *rows]) + '\n')
    return path


def edit(root, name, **changes):
    path = root / 'train' / f'{name}.json'
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_classes_are_the_62_in_alphabetical_order():
    assert len(CLASSES) == 62
    assert list(CLASSES) == sorted(CLASSES)
    assert FMoWRGB.classes[25] == 'impoverished_settlement'
    assert (CLASSES[0], CLASSES[6], CLASSES[61]) == ('airport', 'barn', 'zoo')


def test_samples_are_those_of_the_folders(root):
    for split, labels in {
        'train': [0, 0, 0, 6, 6, 6, 6, 61],
        'val': [6, 6, 61, 61],
        'test': [6, 6],
    }.items():
        for crop in ('box', 'image'):
            dataset = FMoWRGB(root, split, crop)
            assert dataset.labels.tolist() == labels
            assert [int(s['label']) for s in dataset] == labels
    first = FMoWRGB(root)[0]
    known = {'image', 'label', 'bbox_xyxy', 'path', 'index'}
    assert first.keys() == known | METADATA
    assert first['path'] == str(root / 'train/airport/airport_0/airport_0_0_rgb.jpg')
    assert first['label'].dtype == torch.long
    assert FMoWRGB(root).class_to_idx['zoo'] == 61


def test_metadata_are_numbers_under_stable_keys(root):
    """Of time, place, country and view; -1 or NaN where the file does not tell."""
    edit(
        *(root, 'airport/airport_0/airport_0_0_rgb'),
        country_code='KOR',
        gsd=2.1,
        cloud_cover=3,
        sun_elevation_dbl=36.5,
        off_nadir_angle_dbl='25',
    )
    told, plain = (FMoWRGB(root)[index] for index in (0, 1))
    assert all(told[key].ndim == 0 for key in METADATA)
    # 2015-07-25T07:23:14Z
    assert [int(told[key]) for key in ('year', 'month', 'hour')] == [45, 6, 7]
    assert told['longitude'].item() == pytest.approx(0.001)
    assert told['latitude'].item() == pytest.approx(0.002)
    assert COUNTRIES[told['country']] == 'KOR'
    assert SUB_REGIONS[told['sub_region']] == 'Eastern Asia'
    view = ('gsd', 'cloud_cover', 'sun_elevation', 'off_nadir')
    assert [told[key].item() for key in view] == pytest.approx([2.1, 3, 36.5, 25])
    assert plain['country'] == plain['sub_region'] == -1
    assert all(plain[key].isnan() for key in view)
    batch = default_collate([told, plain])
    assert batch['year'].dtype == torch.int64
    assert batch['gsd'].dtype == torch.float32


def test_countries_are_in_one_sub_region_each():
    """M49 has 22 of them; codes have three letters, and their numbers never move."""
    assert len(SUB_REGIONS) == 22
    assert list(COUNTRIES) == sorted(set(COUNTRIES))
    assert all(len(code) == 3 and code.isupper() for code in COUNTRIES)
    assert {int(country_metadata(c)['sub_region']) for c in COUNTRIES} == {*range(22)}
    for code, region in (('USA', 'Northern America'), ('BRA', 'South America')):
        assert SUB_REGIONS[country_metadata(code)['sub_region']] == region


@pytest.mark.parametrize('index', [0, 1])
def test_box_is_cut_with_its_context(fake, root, index):
    """The metadata of image 0 lists its box, that of image 1 gives it alone."""
    sample = FMoWRGB(root, 'train')[index]
    left, top, right, bottom = CROP
    assert sample['image'].shape == (3, bottom - top, right - left)
    assert sample['bbox_xyxy'].tolist() == [[4, 1, 20, 13]]
    pixels = sample['image'].permute(1, 2, 0)
    inside = torch.tensor(fake('fmow').colour('airport', index)).float()
    ground = torch.tensor(fake('fmow').GROUND).float()
    assert_close(pixels[6, 10], inside, atol=4, rtol=0)
    assert_close(pixels[6, 1], ground, atol=4, rtol=0)


def test_box_is_stretched_to_the_size(root):
    dataset = FMoWRGB(root, 'train', size=48)
    assert dataset[0]['image'].shape == (3, 48, 48)
    # 24 x 14 pixels become 48 x 48.
    expected = torch.tensor([[8, 48 / 14, 40, 13 * 48 / 14]])
    assert_close(dataset[0]['bbox_xyxy'], expected)


def test_whole_image(root):
    sample = FMoWRGB(root, 'train', 'image')[0]
    assert sample['image'].shape == (3, 40, 60)
    assert sample['bbox_xyxy'].tolist() == [[20, 10, 36, 22]]
    sample = FMoWRGB(root, 'train', 'image', size=20)[0]
    assert sample['image'].shape == (3, 20, 20)
    # Cut from column 10 to 50, then halved.
    assert sample['bbox_xyxy'].tolist() == [[5, 5, 13, 11]]


def test_every_box_is_a_sample(root):
    boxes = [
        {'category': 'airport', 'box': [20, 10, 16, 12]},
        {'category': 'zoo', 'box': [0, 0, 30, 20]},
        {'category': 'zoo', 'box': [0, 0, 2, 20]},
        {'category': 'false_detection', 'box': [0, 0, 30, 20]},
    ]
    edit(root, 'airport/airport_0/airport_0_0_rgb', bounding_boxes=boxes)
    dataset = FMoWRGB(root, 'train')
    assert dataset.labels.tolist() == [0, 61, 0, 0, 6, 6, 6, 6, 61]
    assert dataset[0]['path'] == dataset[1]['path'] != dataset[2]['path']
    # 30 of 60 and 20 of 40 pixels: padded by int(30 * 0.15 / 2) = 2 and 1.
    assert dataset[1]['image'].shape == (3, 21, 32)
    assert dataset[1]['bbox_xyxy'].tolist() == [[0, 0, 30, 20]]
    image = FMoWRGB(root, 'train', 'image')[0]
    assert image['bbox_xyxy'].shape == (3, 4)
    assert image['label'] == 0


def test_multispectral_variant_has_its_own_files(fake, root):
    with pytest.raises(DatasetNotFoundError, match=r'_msrgb\.jpg'):
        FMoWRGB(root, variant='msrgb')
    fake('fmow').write_fmow(root, 'msrgb')
    dataset = FMoWRGB(root, variant='msrgb')
    assert len(dataset) == len(FMoWRGB(root)) == 8
    assert all(path.endswith('_msrgb.jpg') for path in dataset.paths)


def test_satmaes_csv_file(fake, root):
    csv = fake('fmow').write_csv(root)
    dataset = FMoWRGB(root, csv=csv)
    assert dataset.labels.tolist() == FMoWRGB(root).labels.tolist()
    assert dataset.paths == FMoWRGB(root).paths
    assert torch.equal(dataset[3]['image'], FMoWRGB(root)[3]['image'])


def test_csv_of_images_without_metadata(root, recwarn):
    for path in root.rglob('*.json'):
        path.unlink()
    names = [f'airport/airport_{n}_rgb.jpg' for n in ('0/airport_0_0', '1/airport_1_0')]
    rows = [f'0,train/{name},2015-07-25T07:23:14Z' for name in names]
    csv = write_csv(root / 'a.csv', *rows)
    dataset = FMoWRGB(root, crop='image', csv=csv)
    assert len(dataset) == 2
    assert dataset[0]['bbox_xyxy'].shape == (0, 4)
    assert not recwarn.list
    with pytest.raises(DatasetNotFoundError, match='crop="image"'):
        FMoWRGB(root, crop='box', csv=csv)


def test_csv_with_class_names_and_absolute_paths(root, tmp_path_factory):
    place = tmp_path_factory.mktemp('elsewhere')
    path = root / 'train/zoo/zoo_0/zoo_0_0_rgb.jpg'
    csv = write_csv(place / 'a.csv', f'zoo,{path},')
    dataset = FMoWRGB(csv=csv)
    assert dataset.labels.tolist() == [61]
    assert dataset.paths == [str(path)]
    assert (place / '.a.csv.arrow').exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('category\n0\n', r"columns \['category'\]: expected label, path and time"),
        ('path,category\na.jpg,0\n', "has the label 'a.jpg': expected a number"),
        ('c,p\n62,a.jpg\n', 'row 1 of .* has the label 62: expected a number from 0'),
        ('c,p\nzoos,a.jpg\n', "has the label 'zoos'"),
        ('c,p\n0.5,a.jpg\n', "column 'c' of .* holds double values"),
        ('c,p\n0,1\n', "column 'p' of .* must hold a path"),
    ],
)
def test_wrong_columns_are_named(tmp_path, text, message):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        FMoWRGB(tmp_path, csv=tmp_path / 'a.csv')


def test_missing_files_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r'\*root\* must hold train/<class>'):
        FMoWRGB(tmp_path)
    with pytest.raises(DatasetNotFoundError, match='which is not a file'):
        FMoWRGB(tmp_path, csv=tmp_path / 'a.csv')
    csv = write_csv(tmp_path / 'a.csv', '0,b.jpg,', '0,c.jpg,')
    with pytest.raises(DatasetNotFoundError, match=r'none of the 2 images .*b\.jpg'):
        FMoWRGB(tmp_path, csv=csv)


def test_absent_files_are_counted_and_reported(fake, root):
    csv = fake('fmow').write_csv(root)
    (root / 'train/barn/barn_0/barn_0_2_rgb.jpg').unlink()
    message = r'8 samples, of which 1 .*\(1 absent images\), such as .*barn_0_2_rgb'
    with pytest.raises(FileNotFoundError, match=message):
        FMoWRGB(root, csv=csv)
    with pytest.warns(UserWarning, match=message):
        dataset = FMoWRGB(root, csv=csv, max_missing=0.2)
    assert len(dataset) == 7
    report = (root / '.train_62classes.csv.arrow.report.csv').read_text()
    assert report.splitlines() == [
        'path,problem',
        'train/barn/barn_0/barn_0_2_rgb.jpg,absent images',
    ]
    # In the official layout the metadata tells of the image.
    with pytest.raises(FileNotFoundError, match='1 absent images'):
        FMoWRGB(root)


def test_metadata_without_boxes_is_counted_where_boxes_are_needed(root):
    edit(root, 'zoo/zoo_0/zoo_0_0_rgb', bounding_boxes=None)
    (root / 'train/barn/barn_0/barn_0_1_rgb.json').write_text('{')
    (root / 'train/barn/barn_0/barn_0_3_rgb.json').unlink()
    message = '3 cannot be used .*1 images without a box, 2 images without readable'
    with pytest.warns(UserWarning, match=message):
        dataset = FMoWRGB(root, max_missing=0.5)
    assert dataset.labels.tolist() == [0, 0, 0, 6, 6]
    assert len(FMoWRGB(root, crop='image')) == 8


def test_labels_that_disagree_with_the_folder_are_reported(root):
    """The official baseline numbers the classes in another order."""
    csv = write_csv(root / 'a.csv', '7,train/barn/barn_0/barn_0_0_rgb.jpg,')
    with pytest.warns(UserWarning, match='1 labels that disagree with their folder'):
        assert FMoWRGB(root, csv=csv).labels.tolist() == [6]


def test_times_that_disagree_are_reported(root):
    name = 'train/barn/barn_0/barn_0_0_rgb.jpg'
    csv = write_csv(root / 'a.csv', f'6,{name},2009-10-05T12:30:45Z')
    with pytest.warns(UserWarning, match=r'1 times that disagree .*the metadata take'):
        FMoWRGB(root, csv=csv)
    index, _ = open_index(str(root), 'train', 'rgb', str(csv), None)
    assert index.table['timestamp'].to_pylist() == ['2009-10-05T11:30:45Z']


def test_classes_that_are_none_of_the_62_are_passed_over(root, recwarn):
    place = root / 'train/false_detection/false_detection_0'
    place.mkdir(parents=True)
    (place / 'false_detection_0_0_rgb.jpg').write_bytes(b'')
    assert len(FMoWRGB(root)) == 8
    assert not recwarn.list


@pytest.mark.parametrize('damage', ['cut', 'empty', 'gone'])
def test_unreadable_image_is_named_or_skipped(root, damage):
    FMoWRGB(root)
    path = root / 'train/airport/airport_0/airport_0_1_rgb.jpg'
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == 'cut' else b'')
    if damage == 'gone':
        path.unlink()
    with pytest.raises(UnreadableImageError, match=r"airport_0_1_rgb\.jpg.*'skip'"):
        FMoWRGB(root)[1]
    dataset = FMoWRGB(root, on_error='skip')
    with pytest.warns(UserWarning, match=r'skipped sample 1: .*airport_0_1_rgb\.jpg'):
        sample = dataset[1]
    assert sample['index'] == 2
    assert dataset.skipped == [1]


def test_box_outside_of_its_image_is_named(root):
    edit(
        root,
        'zoo/zoo_0/zoo_0_0_rgb',
        bounding_boxes={'category': 'zoo', 'box': [70, 0, 9, 9]},
    )
    with pytest.raises(UnreadableImageError, match=r'\[70, 0, 9, 9\].*outside its'):
        FMoWRGB(root)[-1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'split': 'dev'}, r"\*split\* must be one of .*, not 'dev'"),
        ({'crop': 'centre'}, r"\*crop\* must be one of \('box', 'image'\)"),
        ({'variant': 'pan'}, r'\*variant\*'),
        ({'size': 0}, r'\*size\* must be a positive'),
        ({'on_error': 'ignore'}, r'\*on_error\*'),
    ],
)
def test_wrong_arguments(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        FMoWRGB(root, **arguments)


def test_index_is_built_again_when_images_are_added(fake, root):
    assert len(FMoWRGB(root)) == 8
    path = root / 'train/barn/barn_9/barn_9_0_rgb.jpg'
    fake('fmow').write_image(path, 'barn', 0, '2015-01-01T00:00:00Z', '')
    assert len(FMoWRGB(root)) == 9


def test_transforms_see_the_sample(root):
    dataset = FMoWRGB(root, transforms=lambda s: s | {'seen': s['index']})
    assert dataset[2]['seen'] == 2


def test_plot(root):
    dataset = FMoWRGB(root, size=32)
    sample = dataset[0] | {'prediction': torch.tensor(6)}
    figure = dataset.plot(sample, suptitle='fMoW')
    assert figure.axes[0].get_title() == 'Label: airport\nPrediction: barn'
    assert len(figure.axes[0].patches) == 1
    plt.close('all')


def test_start_does_not_depend_on_the_number_of_rows(tmp_path):
    """An index that is there is neither read row by row nor checked file by file."""
    pixels = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    folder = tmp_path / 'train/zoo/zoo_0'
    folder.mkdir(parents=True)
    pixels.save(folder / 'zoo_0_0_rgb.jpg')
    row = '61,train/zoo/zoo_0/zoo_0_0_rgb.jpg,2015-01-01T00:00:00Z'
    calls = {}
    for count in (10, 2_000):
        csv = write_csv(tmp_path / f'{count}.csv', *[row] * count)
        for _ in range(2):  # the first one builds the index, and imports what it needs
            events = []
            sys.setprofile(lambda frame, event, _, events=events: events.append(event))
            try:
                dataset = FMoWRGB(tmp_path, crop='image', csv=csv)
                image = dataset[count - 1]['image']
            finally:
                sys.setprofile(None)
        assert image.shape == (3, 8, 8)
        calls[count] = events.count('call') + events.count('c_call')
    assert calls[2_000] < calls[10] + 200
