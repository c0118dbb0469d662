"""Tables that hold something else than they should: named, or counted."""

import numpy as np
import pytest
from PIL import Image

from torchgeo_explora.datasets import (
    Camelyon17,
    FMoWSentinel,
    GlobalWheat,
    IWildCam,
    NAIPLandCover,
)
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError

TABLES = {
    Camelyon17: ('wilds', 'camelyon17', 'camelyon17_v1.0/metadata.csv'),
    IWildCam: ('wilds', 'iwildcam', 'iwildcam_v2.0/metadata.csv'),
    GlobalWheat: ('wilds', 'globalwheat', 'globalwheat_v1.1/official_train.csv'),
    FMoWSentinel: ('fmow_sentinel', 'fmow_sentinel', 'train.csv'),
}


@pytest.fixture
def change(fake, tmp_path):
    """Write the fake data of a class with a change in its table."""

    def write(kind, old, new):
        file, name, table = TABLES[kind]
        getattr(fake(file), f'write_{name}')(tmp_path)
        path = tmp_path / table
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ('kind', 'old', 'new', 'message'),
    [
        (Camelyon17, '1,0,0,0\n', '1,0,zero,0\n', "row 1 .*'zero' in .*'center'"),
        (Camelyon17, '21792,1,', '21792,,', "row 1 .*'nan' in the column 'tumor'"),
        (Camelyon17, '21792,1,', '21792,7,', 'label 7: expected numbers from 0 to 1'),
        (IWildCam, ',181,c.jpg', ',99999,c.jpg', 'label 99999: .* from 0 to 181'),
        (IWildCam, ',181,c.jpg', ',-1,c.jpg', 'label -1: expected'),
        (IWildCam, 'train,7,0', 'training,7,0', "split 'training': expected one of"),
        (IWildCam, 'train,7,', 'train,7.5,', "'7.5' in the column 'location_remapped'"),
        (GlobalWheat, '10 20 30 40', 'ten 20 30 40', "boxes 'ten 20 30 40' must be"),
        (GlobalWheat, '10 20 30 40', 'nan 1 2 3', "boxes 'nan 1 2 3' must be four"),
        (GlobalWheat, ',3\n', ',Arvalis\n', "'Arvalis' in the column 'domain'"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(change, kind, old, new, message):
    root = change(kind, old, new)
    with pytest.raises(ValueError, match=message):
        kind(root)


def test_numbers_written_as_fractions_name_the_same_files(change):
    assert len(Camelyon17(change(Camelyon17, '3328,', '3328.0,'))) == 4


def test_table_without_rows_has_no_sample(change, tmp_path):
    for kind in (Camelyon17, FMoWSentinel):
        change(kind, 'a', 'a')
        path = tmp_path / TABLES[kind][2]
        path.write_text(path.read_text().splitlines()[0] + '\n')
        with pytest.raises(FileNotFoundError, match=r'no (sample|image)'):
            kind(tmp_path)


def test_names_of_species_are_checked_too(change):
    root = change(IWildCam, 'split', 'split')
    path = root / 'iwildcam_v2.0/categories.csv'
    path.write_text('y,label\n1,zebra\n')
    with pytest.raises(ValueError, match=r'categories\.csv lacks the columns name'):
        IWildCam(root)


def test_boxes_fit_photographs_of_another_size(change):
    root = change(GlobalWheat, 'image_name', 'image_name')
    path = root / 'globalwheat_v1.1/images/c.png'
    Image.open(path).resize((512, 256)).save(path)
    boxes = GlobalWheat(root, size=64)[2]['bbox_xyxy']
    assert boxes.tolist() == [[1.25, 5, 3.75, 10]]


@pytest.mark.parametrize(
    ('old', 'new', 'problem'),
    [
        ('zoo,3,', 'zoo,,', 'absent images'),
        ('zoo,3,', ',3,', 'files of an unknown class'),
        ('2017-05-06T10:00:00Z', '', 'rows without a time'),
        ('2017-05-06T10:00:00Z', '2017', 'rows without a time'),
    ],
)
def test_empty_fields_are_counted(change, old, new, problem):
    root = change(FMoWSentinel, old, new)
    with pytest.raises(FileNotFoundError, match=f'5 samples, of which 1 .*1 {problem}'):
        FMoWSentinel(root)
    with pytest.warns(UserWarning, match=problem):
        dataset = FMoWSentinel(root, max_missing=0.2)
    # What is left has the files and the order that it had.
    names = [path.rpartition('/')[2] for path in dataset.paths]
    kept = ['airport_2_7', 'airport_10_1', 'airport_10_0', 'barn_0_0']
    assert names == [f'{name}.tif' for name in kept]


def test_bands_of_another_sensor_are_the_files_fault(fake, change):
    root = change(FMoWSentinel, 'zoo', 'zoo')
    path = next((root / 'fmow-sentinel/train').rglob('zoo*.tif'))
    fake('fmow_sentinel').write_tiff(path, 0, 13, tuple('abcdefghijklm'))
    with pytest.raises(UnreadableImageError, match=r'zoo_3_0\.tif has the bands a, b'):
        FMoWSentinel(root)[4]
    for arguments in ({'bands': ()}, {'years': (2017,)}, {'years': (2018, 2017)}):
        with pytest.raises(ValueError, match=rf'\*{next(iter(arguments))}\*'):
            FMoWSentinel(root, **arguments)


@pytest.mark.parametrize(
    'pixels',
    [np.zeros((4, 50, 50)), np.zeros((0, 0, 4)), np.full((9, 9, 4), 'x'), None],
)
def test_tiles_that_are_none(fake, tmp_path, pixels):
    root = fake('naip').write_naip(tmp_path)
    path = root / 'supervised_50_100/1tile.npy'
    if pixels is None:
        with path.open('wb') as file:
            np.savez(file, a=np.zeros(3))
    else:
        np.save(path, pixels)
    with pytest.raises(UnreadableImageError, match=r'1tile\.npy has shape .* expected'):
        NAIPLandCover(root)[1]
    with pytest.raises(ValueError, match=r'\*bands\* is empty'):
        NAIPLandCover(root, bands=())
    (root / 'splits.npy').write_bytes(path.read_bytes())
    if pixels is None:
        with pytest.raises(ValueError, match=r'splits\.npy is not an array .* several'):
            NAIPLandCover(root)
