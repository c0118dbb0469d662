import os
import pickle
import random
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from torch.utils.data import DataLoader
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.datasets import ImageFolder, NoImagesError, UnreadableImageError
from torchgeo_explora.datasets.folder import layout as folder_layout


def values(seed, shape, dtype='uint8', high=256):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def save_png(path, seed=0, shape=(8, 8, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = values(seed, shape)
    Image.fromarray(array).save(path)
    return array


def save_tiff(path, array, names=None, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    profile = {'count': count, 'height': height, 'width': width, **profile}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with rasterio.open(path, 'w', dtype=array.dtype, **profile) as file:
            file.write(array)
            for i, name in enumerate(names or ()):
                file.set_band_description(i + 1, name)
    return array


@pytest.fixture
def by_class(tmp_path):
    for i in range(12):
        save_png(tmp_path / ('water', 'crop', 'forest')[i % 3] / f'{i:02}.png', seed=i)
    return tmp_path


def test_class_folders_give_alphabetical_labels(by_class):
    dataset = ImageFolder(by_class)
    assert dataset.classes == ['crop', 'forest', 'water']
    assert dataset.labels == [0] * 4 + [1] * 4 + [2] * 4
    sample = dataset[5]
    assert sample['image'].dtype == torch.float32
    assert sample['image'].shape == (3, 8, 8)
    assert sample['label'].shape == ()
    assert sample['label'].dtype == torch.long
    assert sample['path'] == str(by_class / 'forest' / '05.png')
    assert sample['index'] == 5
    assert dataset[-1]['index'] == 11


def test_flat_folder_has_no_labels(tmp_path):
    arrays = [save_png(tmp_path / f'{i}.png', seed=i) for i in range(3)]
    dataset = ImageFolder(tmp_path)
    assert dataset.labels is None
    assert 'label' not in dataset[0]
    assert dataset.value_range == (0.0, 255.0)
    for i, array in enumerate(arrays):
        expected = torch.from_numpy(array).permute(2, 0, 1).float()
        torch.testing.assert_close(dataset[i]['image'], expected)


def test_hidden_files_side_cars_and_other_suffixes_are_passed_over(tmp_path):
    save_png(tmp_path / 'a.PNG')
    for name in ('a.png.aux.xml', '._a.png', '.hidden.png', 'notes.txt', 'a.json'):
        (tmp_path / name).write_text('x')
    (tmp_path / '.cache').mkdir()
    save_png(tmp_path / '.cache' / 'b.png')
    assert ImageFolder(tmp_path).paths == [str(tmp_path / 'a.PNG')]


def test_stray_images_beside_class_folders_cost_the_labels(by_class):
    save_png(by_class / 'stray.png')
    with pytest.warns(UserWarning, match=r'1 of the 13 images.*stray\.png.*no labels'):
        dataset = ImageFolder(by_class)
    assert dataset.labels is None
    assert len(dataset) == 13


def test_split_folders_share_classes_and_predict_without_labels(tmp_path):
    save_png(tmp_path / 'train' / 'b' / '0.png')
    save_png(tmp_path / 'val' / 'a' / '0.png')
    save_png(tmp_path / 'test' / 'b' / '0.png')
    save_png(tmp_path / 'predict' / '0.png')
    datasets = {s: ImageFolder(tmp_path, s) for s in ('train', 'val', 'test')}
    assert all(d.classes == ['a', 'b'] for d in datasets.values())
    assert [d.labels for d in datasets.values()] == [[1], [0], [1]]
    predict = ImageFolder(tmp_path, 'predict')
    assert predict.labels is None
    assert predict.paths == [str(tmp_path / 'predict' / '0.png')]


def test_unlabelled_training_images_may_have_labelled_validation_images(tmp_path):
    save_png(tmp_path / 'train' / '0.png')
    save_png(tmp_path / 'val' / 'a' / '0.png')
    assert ImageFolder(tmp_path, 'train').labels is None
    assert ImageFolder(tmp_path, 'val').labels == [0]


def test_predict_without_a_folder_is_every_image_in_order(by_class):
    paths = ImageFolder(by_class, 'predict', val_fraction=0.3).paths
    assert len(paths) == 12
    assert paths == sorted(paths)


def test_class_folder_named_like_a_split_is_refused(by_class):
    save_png(by_class / 'train' / '0.png')
    with pytest.raises(ValueError, match=r"\['train'\] and other images.*rename"):
        ImageFolder(by_class)


@pytest.mark.parametrize(
    ('train', 'val', 'test'),
    [
        ('Train', 'Validation', 'Test'),
        ('training', 'valid', 'testing'),
        ('images/train', 'images/val', 'images/test'),
        ('Images/TRAIN', 'Images/VAL', 'Images/TEST'),
    ],
)
def test_other_names_of_splits_are_not_classes(tmp_path, train, val, test):
    folders = {'train': train, 'val': val, 'test': test}
    for folder in folders.values():
        save_png(tmp_path / folder / 'b' / '0.png')
        save_png(tmp_path / folder / 'a' / '1.png')
    for split, folder in folders.items():
        dataset = ImageFolder(tmp_path, split)
        assert dataset.classes == ['a', 'b']
        assert dataset.paths == [
            str(tmp_path / folder / 'a/1.png'),
            str(tmp_path / folder / 'b/0.png'),
        ]
    assert ImageFolderDataModule(tmp_path).has_val
    with pytest.raises(ValueError, match=r'has a folder val'):
        ImageFolder(tmp_path, val_fraction=0.5)


def test_masks_beside_the_folder_of_images_are_passed_over(tmp_path):
    save_png(tmp_path / 'images/train/0.png')
    save_png(tmp_path / 'masks/train/0.png')
    with pytest.warns(UserWarning, match='1 outside of images'):
        assert len(ImageFolder(tmp_path)) == 1


def test_images_is_a_class_like_others_without_splits_in_it(tmp_path):
    save_png(tmp_path / 'images/0.png')
    save_png(tmp_path / 'maps/0.png')
    assert ImageFolder(tmp_path).classes == ['images', 'maps']


def test_suffixes_that_are_passed_over_are_counted_and_named(tmp_path):
    for name in ('a.jp2', 'b.JP2', 'c.gif', 'd.txt'):
        (tmp_path / name).touch()
    with pytest.raises(NoImagesError, match=r'Passed over: 1 \.gif, 2 \.jp2$'):
        ImageFolder(tmp_path)
    save_png(tmp_path / '0.png')
    with pytest.warns(UserWarning, match=r'passed over .*: 1 \.gif, 2 \.jp2\.'):
        assert len(ImageFolder(tmp_path)) == 1


def test_webp_is_read(tmp_path):
    array = values(0, (8, 8, 3))
    Image.fromarray(array).save(tmp_path / 'a.webp', lossless=True)
    expected = torch.from_numpy(array).permute(2, 0, 1).float()
    torch.testing.assert_close(ImageFolder(tmp_path)[0]['image'], expected)


@pytest.fixture
def many(tmp_path):
    for i in range(200):
        (tmp_path / f'{i:03}.png').touch()
    return tmp_path


def split_names(root, seed=0):
    layout = folder_layout.FolderLayout(str(root), 0.2, 0.1, seed)
    return {split: layout.members(split) for split in ('train', 'val', 'test')}


def test_fractions_divide_all_images(many):
    parts = split_names(many)
    together = [name for part in parts.values() for name in part]
    assert sorted(together) == sorted(p.name for p in many.iterdir())
    assert 25 <= len(parts['val']) <= 55
    assert 8 <= len(parts['test']) <= 35
    assert parts != split_names(many, seed=1)


def test_an_image_keeps_its_split_when_others_come_and_go(many, monkeypatch):
    before = split_names(many)
    listing = folder_layout._list_images
    monkeypatch.setattr(
        folder_layout,
        '_list_images',
        lambda root: (
            random.Random(0).sample(names := listing(root)[0], len(names)),
            Counter(),
        ),
    )
    assert {k: sorted(v) for k, v in split_names(many).items()} == before
    monkeypatch.undo()
    for i in range(0, 200, 3):
        (many / f'{i:03}.png').unlink()
    (many / 'added.png').touch()
    for split, names in split_names(many).items():
        assert set(names) - {'added.png'} <= set(before[split])


def test_small_fractions_still_give_one_image(tmp_path):
    for i in range(4):
        save_png(tmp_path / f'{i}.png')
    sizes = [
        len(ImageFolder(tmp_path, split, val_fraction=0.01, test_fraction=0.01))
        for split in ('train', 'val', 'test')
    ]
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'val_fraction': 0.2}, r'\*val_fraction\* is 0.2 but .* has a folder val'),
        ({'test_fraction': 1.0}, r'\*test_fraction\* must be in \[0, 1\), not 1.0'),
        ({'split': 'dev'}, r"\*split\* must be one of .*, not 'dev'"),
        ({'on_error': 'ignore'}, r"\*on_error\* must be one of \('raise', 'skip'\)"),
        ({'size': 0}, r'\*size\* must be a positive number of pixels, not 0'),
        ({'bands': ['nir']}, "band 'nir' is not in .*0.png.* red, green, blue"),
        ({'bands': [4]}, 'band 4 is not in .*numbers from 1'),
        ({'value_range': (5, 5)}, 'with low < high'),
        ({'value_range': ([0, 0], [1, 1])}, '2 numbers for 3 bands'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, arguments, message):
    save_png(tmp_path / 'train' / '0.png')
    save_png(tmp_path / 'val' / '0.png')
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, **arguments)


def test_fractions_must_leave_training_images(tmp_path):
    save_png(tmp_path / '0.png')
    with pytest.raises(ValueError, match='nothing is left to train on'):
        ImageFolder(tmp_path, val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(NoImagesError, match=r'no training image.*lower'):
        ImageFolder(tmp_path, val_fraction=0.5)


def test_empty_and_missing_folders_are_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=rf'{tmp_path}.*\.jpg.*\.tiff'):
        ImageFolder(tmp_path)
    with pytest.raises(NoImagesError, match=r'nowhere, which is not a folder'):
        ImageFolder(tmp_path / 'nowhere')
    save_png(tmp_path / '0.png')
    with pytest.raises(NoImagesError, match=r"split 'val'.*\*val_fraction\*"):
        ImageFolder(tmp_path, 'val')


def test_mixed_sizes_need_a_size(tmp_path):
    save_png(tmp_path / 'a.png', shape=(16, 24, 3))
    save_png(tmp_path / 'b.png', shape=(40, 8, 3))
    message = r'b.png is \(40, 8\) pixels but .*a.png is \(16, 24\).*size=8'
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path)[1]
    dataset = ImageFolder(tmp_path, size=12)
    assert [s['image'].shape for s in dataset] == [(3, 12, 12)] * 2


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path):
    ramp = np.tile(np.arange(24, dtype=np.uint8) * 10, (12, 1))
    Image.fromarray(ramp).save(tmp_path / 'ramp.png')
    image = ImageFolder(tmp_path, size=6)[0]['image']
    # Columns 6 to 17 of the ramp, averaged in pairs by the antialiasing filter.
    expected = torch.arange(6.5, 18, 2).mul(10).expand(1, 6, 6)
    torch.testing.assert_close(image, expected, atol=0.5, rtol=0)
    unchanged = ImageFolder(tmp_path, size=12)[0]['image']
    torch.testing.assert_close(unchanged[0, 0], torch.arange(6.0, 18) * 10)


def test_mixed_band_counts_name_the_file(tmp_path):
    save_tiff(tmp_path / 'a.tif', values(0, (3, 8, 8)))
    save_tiff(tmp_path / 'b.tif', values(1, (1, 8, 8)))
    with pytest.raises(ValueError, match=r'b.tif has 1 bands .*a.tif has 3'):
        ImageFolder(tmp_path)[1]


def test_mixed_types_need_a_value_range(tmp_path):
    save_tiff(tmp_path / 'a.tif', values(0, (3, 8, 8)))
    save_tiff(tmp_path / 'b.tif', values(1, (3, 8, 8), 'uint16', 4000))
    with pytest.raises(ValueError, match=r'b.tif holds uint16 values but .*uint8'):
        ImageFolder(tmp_path)[1]
    dataset = ImageFolder(tmp_path, value_range=(0, 4000))
    assert dataset[1]['image'].max() > 255
    assert dataset.value_range == (0.0, 4000.0)


@pytest.fixture
def mixed(tmp_path):
    """Of eight images, the first one and two others are unlike most."""
    save_tiff(tmp_path / '0.tif', values(0, (3, 8, 8), 'uint16'))
    for i in (1, 2, 4, 6):
        save_tiff(tmp_path / f'{i}.tif', values(i, (3, 8, 8)))
    save_tiff(tmp_path / '3.tif', values(3, (4, 8, 8)))
    save_tiff(tmp_path / '5.tif', values(5, (3, 8, 9)))
    (tmp_path / '7.tif').write_bytes(b'II')
    return tmp_path


@pytest.mark.parametrize('name', ['5.tif', '7.tif'])
def test_the_advice_to_skip_an_image_comes_from_the_data_set(mixed, name):
    """Readers do not give it, since not all that read an image have *on_error*."""
    (mixed / '0.tif').unlink()
    dataset = ImageFolder(mixed)
    number = next(i for i, path in enumerate(dataset.paths) if path.endswith(name))
    with pytest.raises(UnreadableImageError) as error:
        dataset.read(number)
    assert name in str(error.value)
    assert 'on_error' not in str(error.value)
    with pytest.raises(type(error.value), match="or pass on_error='skip' to continue"):
        dataset[number]


def test_so_does_that_about_the_first_image(mixed):
    """Whose header is read at once."""
    (mixed / '0.tif').write_bytes(b'II')
    with pytest.raises(UnreadableImageError, match=r"0\.tif.*or pass on_error='skip'"):
        ImageFolder(mixed)


def test_what_does_not_fit_is_skipped_at_the_start(mixed):
    """Bands, data type and size are in the header: one warning, and no surprise."""
    with pytest.warns(UserWarning, match=r'0\.tif holds uint16.*4 of 8') as told:
        dataset = ImageFolder(mixed, on_error='skip')
    # rasterio has a warning of its own where files have no place on earth.
    ours = [w for w in told if w.category is not NotGeoreferencedWarning]
    assert len(ours) == 1
    assert dataset.skipped == [0, 3, 5, 7]
    assert dataset.value_range == (0.0, 255.0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        assert [int(s['index']) for s in dataset] == [1, 1, 2, 4, 4, 6, 6, 1]
    with pytest.warns(UserWarning, match='3 of 8'):
        assert ImageFolder(mixed, size=4, on_error='skip').skipped == [0, 3, 7]


def test_most_images_decide_and_the_message_names_both(mixed):
    dataset = ImageFolder(mixed)
    assert dataset.value_range == (0.0, 255.0)
    for index, message in (
        (0, r'0\.tif holds uint16 values but .*1\.tif holds uint8'),
        (3, r'3\.tif has 4 bands .*1\.tif has 3'),
        (5, r'5\.tif is \(8, 9\) pixels but .*1\.tif is \(8, 8\)'),
    ):
        with pytest.raises(ValueError, match=message):
            dataset[index]


def test_a_file_that_changed_since_the_start_is_skipped_too(mixed):
    with pytest.warns(UserWarning, match='skipped sample 0'):
        dataset = ImageFolder(mixed, on_error='skip')
    save_tiff(mixed / '1.tif', values(1, (2, 8, 8)))
    with pytest.warns(UserWarning, match=r'skipped sample 1: .*1\.tif has 2 bands'):
        assert dataset[1]['index'] == 2


@pytest.mark.parametrize('mode', ['L', 'LA', '1'])
def test_gray_pictures_become_red_green_and_blue(tmp_path, mode):
    save_png(tmp_path / 'b.png')
    gray = Image.fromarray(values(1, (8, 8))).convert(mode)
    gray.save(tmp_path / 'a.png')
    dataset = ImageFolder(tmp_path)
    assert dataset.bands == ('red', 'green', 'blue')
    expected = np.asarray(gray.convert('L')).astype('float32')
    torch.testing.assert_close(
        dataset[0]['image'], torch.from_numpy(expected).expand(3, 8, 8)
    )
    (tmp_path / 'b.png').unlink()
    assert ImageFolder(tmp_path).bands == ('gray',)


@pytest.mark.parametrize(
    ('dtype', 'expected'),
    [
        ('uint8', (0.0, 255.0)),
        ('uint16', (0.0, 10000.0)),
        ('int16', (0.0, 10000.0)),
        ('float32', (0.0, 1.0)),
        ('float64', (0.0, 1.0)),
    ],
)
def test_value_range_follows_the_stored_type(tmp_path, dtype, expected):
    array = save_tiff(tmp_path / 'a.tif', values(0, (2, 8, 8), dtype, 200))
    dataset = ImageFolder(tmp_path)
    assert dataset.value_range == expected
    torch.testing.assert_close(
        dataset[0]['image'], torch.from_numpy(array.astype('float32'))
    )


def test_the_usual_scale_of_16_bits_is_not_known_to_be_right(tmp_path):
    save_tiff(tmp_path / 'deep' / '0.tif', values(0, (1, 8, 8), 'uint16'))
    save_tiff(tmp_path / 'bytes' / '0.tif', values(0, (1, 8, 8)))
    assert not ImageFolder(tmp_path / 'deep').range_known
    assert ImageFolder(tmp_path / 'deep', value_range=(0, 10000)).range_known
    assert ImageFolder(tmp_path / 'bytes').range_known


def test_bytes_stored_in_16_bits_are_warned_of(tmp_path):
    save_tiff(tmp_path / 'a.tif', values(0, (3, 8, 8), 'uint16', 256))
    with pytest.warns(UserWarning, match=r'less than 5% .*value_range=\(0, 255\)'):
        ImageFolder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ImageFolder(tmp_path, value_range=(0, 255))
        save_tiff(tmp_path / 'a.tif', values(0, (3, 8, 8), 'uint16', 3000))
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    ('dtype', 'high', 'given', 'advice'),
    [
        ('uint16', 2048, (0, 65535), r'up to 65535.*value_range=\(0, 2047\)'),
        ('uint16', 256, ([0, 0, 0], [6000, 7000, 8000]), r'value_range=\(0, 255\)'),
        ('float32', 1, (0, 10000), r'value_range=\(0\.\d+, 0\.9\d+\)'),
    ],
)
def test_given_range_that_is_far_too_wide_is_warned_of_once(
    tmp_path, dtype, high, given, advice
):
    array = np.random.default_rng(0).uniform(0, high, (3, 8, 8)).astype(dtype)
    for name in 'abcd':
        save_tiff(tmp_path / f'{name}.tif', array)
    with pytest.warns(UserWarning, match=advice) as caught:
        ImageFolder(tmp_path, value_range=given)
    assert sum('almost black' in str(w.message) for w in caught) == 1


def test_images_that_are_black_or_lie_low_in_a_range_are_not_warned_of(tmp_path):
    save_tiff(tmp_path / 'a.tif', np.zeros((3, 8, 8), 'uint16'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ImageFolder(tmp_path)
    # Decibels.
    save_tiff(tmp_path / 'a.tif', np.full((3, 8, 8), -10, 'float32'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ImageFolder(tmp_path, value_range=(-30, 0))


def test_file_names_that_are_not_text_are_read_or_named(tmp_path):
    save_png(tmp_path / 'a.png')
    save_tiff(tmp_path / 'b.tif', values(0, (3, 8, 8)))
    for name in ('a.png', 'b.tif'):
        odd = os.fsencode(tmp_path / name).replace(b'/' + name[:1].encode(), b'/\xff')
        os.rename(tmp_path / name, os.fsdecode(odd))
    dataset = ImageFolder(tmp_path)
    assert len(dataset) == 2
    assert dataset[0]['image'].shape == (3, 8, 8)
    with pytest.raises(UnreadableImageError, match=r'udcff\.tif') as error:
        dataset[1]
    assert str(error.value).encode()
    with pytest.warns(UserWarning, match='skipped sample 1'):
        assert ImageFolder(tmp_path, on_error='skip')[1]['index'] == 0


def test_types_without_a_usual_range_need_one(tmp_path):
    save_tiff(tmp_path / 'a.tif', values(0, (2, 8, 8), 'int32'))
    with pytest.raises(ValueError, match=r'a.tif holds int32 values.*value_range='):
        ImageFolder(tmp_path)
    dataset = ImageFolder(tmp_path, value_range=([0, 1], [9, 8]))
    assert dataset.value_range == ((0.0, 1.0), (9.0, 8.0))


def test_bands_are_found_by_name_in_files_of_different_order(tmp_path):
    names = ['B02', 'B03', 'B04', 'B08']
    first = save_tiff(tmp_path / 'a.tif', values(0, (4, 8, 8), 'uint16'), names)
    second = save_tiff(tmp_path / 'b.tif', values(1, (4, 8, 8), 'uint16'), names[::-1])
    dataset = ImageFolder(tmp_path)
    assert dataset.bands == tuple(names)
    torch.testing.assert_close(
        dataset[1]['image'], torch.from_numpy(second[::-1].astype('float32'))
    )
    dataset = ImageFolder(tmp_path, bands=['B04', 'B03'])
    assert dataset.bands == ('B04', 'B03')
    for sample, array in zip(dataset, (first[[2, 1]], second[[1, 2]]), strict=True):
        torch.testing.assert_close(
            sample['image'], torch.from_numpy(array.astype('float32'))
        )


def test_bands_without_descriptions_can_be_named(tmp_path):
    first = save_tiff(tmp_path / '0.tif', values(0, (3, 8, 8)))
    save_tiff(tmp_path / '1.tif', values(1, (2, 8, 8)))
    names = ('B02', 'B03', 'B8A')
    assert ImageFolder(tmp_path, band_names=names).bands == names
    dataset = ImageFolder(tmp_path, bands=['B8A', 1], band_names=names)
    assert dataset.bands == ('B8A', 'B02')
    assert np.array_equal(dataset[0]['image'].numpy(), first[[2, 0]])
    with pytest.raises(ValueError, match=r'\*band_names\* has 3 names, .*1\.tif has 2'):
        dataset[1]


def test_names_that_are_given_replace_descriptions(tmp_path):
    array = save_tiff(tmp_path / '0.tif', values(0, (2, 8, 8)), names=['b', 'a'])
    dataset = ImageFolder(tmp_path, bands=['a'], band_names=['a', 'b'])
    assert np.array_equal(dataset[0]['image'].numpy(), array[:1])


def test_bands_are_found_by_number_from_one(tmp_path):
    names = ['B02', 'B03', 'B04', 'B08']
    array = save_tiff(tmp_path / 'a.tif', values(0, (4, 8, 8), 'uint16'), names)
    dataset = ImageFolder(tmp_path, bands=[4, 1])
    assert dataset.bands == ('B08', 'B02')
    torch.testing.assert_close(
        dataset[0]['image'], torch.from_numpy(array[[3, 0]].astype('float32'))
    )


def test_a_missing_band_is_named_with_those_present(tmp_path):
    save_tiff(tmp_path / 'a.tif', values(0, (2, 8, 8), 'uint16'), ['B02', 'B03'])
    with pytest.raises(ValueError, match=r"'B10' is not in .*a.tif.*B02, B03"):
        ImageFolder(tmp_path, bands=['B02', 'B10'])


def test_pixels_without_data_are_zero(tmp_path):
    array = values(0, (1, 4, 4), 'float32') / 300
    array[0, 0, 0], array[0, 1, 1] = np.nan, -9999
    save_tiff(tmp_path / 'a.tif', array, nodata=-9999)
    image = ImageFolder(tmp_path)[0]['image']
    assert image[0, 0, 0] == image[0, 1, 1] == 0
    assert image.isfinite().all()
    assert image.min() == 0
    assert ImageFolder(tmp_path).no_data == 0


def test_pixels_outside_the_mask_of_a_file_are_zero(tmp_path):
    array = save_tiff(tmp_path / 'a.tif', values(0, (3, 8, 8)) // 2 + 9)
    assert ImageFolder(tmp_path).no_data is None
    with rasterio.open(tmp_path / 'a.tif', 'r+') as file:
        file.write_mask(np.pad(np.ones((8, 5), bool), ((0, 0), (0, 3))))
    dataset = ImageFolder(tmp_path)
    assert dataset.no_data == 0
    array[:, :, 5:] = 0
    assert np.array_equal(dataset[0]['image'].numpy(), array)


@pytest.mark.parametrize('mode', ['RGBA', 'P', 'L', 'LA', '1'])
def test_picture_modes_lose_palette_and_alpha_only(tmp_path, mode):
    picture = Image.fromarray(values(0, (8, 8, 3))).convert(mode)
    picture.save(tmp_path / 'a.png')
    colours = 'RGB' if mode in ('RGBA', 'P') else 'L'
    expected = np.atleast_3d(np.array(picture.convert(colours)))
    torch.testing.assert_close(
        ImageFolder(tmp_path)[0]['image'],
        torch.from_numpy(expected).permute(2, 0, 1).float(),
    )


@pytest.mark.parametrize('count', [1, 3, 4])
def test_png_of_16_bits_keeps_its_values(tmp_path, count):
    array = values(0, (count, 8, 8), 'uint16', 60000)
    save_tiff(tmp_path / 'a.png', array, driver='PNG')
    dataset = ImageFolder(tmp_path)
    assert dataset.value_range == (0.0, 10000.0)
    kept = torch.from_numpy(array[:3].astype('float32'))
    torch.testing.assert_close(dataset[0]['image'], kept)


def damage(path, how):
    if how == 'empty':
        path.write_bytes(b'')
    elif how == 'text':
        path.write_text('this is no image, whatever its name says')
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize('how', ['empty', 'text', 'truncated'])
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif'])
def test_unreadable_images_are_named(tmp_path, suffix, how):
    for i in range(2):
        path = tmp_path / f'{i}{suffix}'
        if suffix == '.tif':
            save_tiff(path, values(i, (3, 64, 64)))
        else:
            save_png(path, seed=i, shape=(64, 64, 3))
    damage(tmp_path / f'1{suffix}', how)
    dataset = ImageFolder(tmp_path)
    message = rf"cannot read image .*1{suffix}: .*on_error='skip'"
    with pytest.raises(UnreadableImageError, match=message):
        dataset[1]


@pytest.fixture
def damaged(tmp_path):
    for i in range(8):
        save_png(tmp_path / f'{i}.png', seed=i, shape=(32, 32, 3))
    for i in (0, 3, 4):
        damage(tmp_path / f'{i}.png', 'truncated' if i else 'empty')
    return tmp_path


def test_skip_replaces_warns_once_and_counts(damaged):
    with pytest.warns(UserWarning, match=r'skipped sample 0: .*0\.png'):
        dataset = ImageFolder(damaged, on_error='skip')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        samples = [dataset[i] for i in range(8)]
    told = [str(warning.message).partition('.png')[0] for warning in caught]
    # The first one that is found while reading; the header of 0 was found before.
    assert [text[-1] for text in told] == ['3']
    assert [int(s['index']) for s in samples] == [1, 1, 2, 5, 5, 5, 6, 7]
    assert samples[3]['path'].endswith('5.png')
    assert dataset.skipped == [0, 3, 4]
    assert '3 of the 8 samples' in dataset.sum_up()
    assert dataset.sum_up().endswith('numbers 0, 3, 4')
    assert dataset.paths[3] == str(damaged / '3.png')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataset[3]


@pytest.mark.filterwarnings('ignore:skipped sample')
def test_workers_skip_and_report(damaged):
    dataset = ImageFolder(damaged, on_error='skip')
    batches = list(DataLoader(dataset, batch_size=4, num_workers=2))
    assert [len(batch['path']) for batch in batches] == [4, 4]
    skipped = [dataset.paths[index][-5:] for index in dataset.skipped]
    assert skipped == ['0.png', '3.png', '4.png']


def test_workers_name_the_unreadable_image(damaged):
    (damaged / '0.png').unlink()
    batches = iter(DataLoader(ImageFolder(damaged), batch_size=8, num_workers=1))
    with pytest.raises(UnreadableImageError, match=r'cannot read image .*3.png'):
        next(batches)
    batches._shutdown_workers()


@pytest.mark.filterwarnings('ignore:skipped sample')
def test_skip_stops_when_no_image_is_left(tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.png').write_bytes(b'')
    with pytest.raises(UnreadableImageError, match='none of the 3 samples'):
        ImageFolder(tmp_path, on_error='skip')


def test_dataset_survives_pickling(by_class):
    dataset = pickle.loads(pickle.dumps(ImageFolder(by_class, size=4)))
    assert dataset[3]['image'].shape == (3, 4, 4)


def test_transforms_see_the_whole_sample(by_class):
    dataset = ImageFolder(by_class, transforms=lambda s: {**s, 'label': -s['label']})
    assert dataset[11]['label'] == -2


def test_plot_shows_true_colour_of_named_bands(tmp_path):
    names = ['B02', 'B03', 'B04', 'B08']
    array = values(0, (4, 8, 8), 'uint16', 10000)
    save_tiff(tmp_path / 'water' / 'a.tif', array, names)
    dataset = ImageFolder(tmp_path)
    sample = dataset[0]
    figure = dataset.plot({**sample, 'prediction': sample['label']}, suptitle='one')
    drawn = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn, array[[2, 1, 0]].transpose(1, 2, 0) / 1e4, 1e-6)
    assert figure.axes[0].get_title() == 'Label: water\nPrediction: water'
    gray = ImageFolder(tmp_path, bands=[4])
    assert gray.plot(gray[0]).axes[0].images[0].get_array().ndim == 2


def test_listing_a_folder_looks_at_no_file(tmp_path):
    """Opening a file, or asking for its status, takes long on a network disk."""
    for i in range(5):
        (tmp_path / str(i)).mkdir()
        for j in range(20):
            (tmp_path / str(i) / f'{j}.png').touch()
    calls = Counter()

    def count(frame, event, called):
        if event == 'c_call':
            calls[called.__name__] += 1

    sys.setprofile(count)
    try:
        layout = folder_layout.FolderLayout(str(tmp_path), 0.1, 0.1)
    finally:
        sys.setprofile(None)
    assert len(layout.labels('train')) > 50
    assert calls['scandir'] == 6  # the folder, and each of its folders once
    assert calls['open'] == 0
    assert calls['stat'] + calls['lstat'] < 6
