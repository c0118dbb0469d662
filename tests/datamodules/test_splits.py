"""What the splits of a data set share: places on the ground, above all."""

import shutil
import warnings

import pytest

from torchgeo_explora.datamodules import (
    FMoWRGBDataModule,
    FMoWSentinelDataModule,
    FMoWTemporalDataModule,
    IWildCamDataModule,
)
from torchgeo_explora.datasets import IWildCam


def fmow(fake, root):
    """Two images of the test split show a barn of the training split."""
    fmow = fake('fmow')
    fmow.write_fmow(root)
    outline = fmow.polygon('train', 'barn', 0)
    for image in range(2):
        path = root / f'test_gt/barn/barn_0/barn_0_{image}_rgb.jpg'
        fmow.write_image(path, 'barn', image, '2013-06-07T08:09:10Z', outline)


def fmow_sentinel(fake, root):
    fake('fmow_sentinel').write_fmow_sentinel(root)
    path, other = root / 'test_gt.csv', fake('fmow_sentinel').outline('test_gt', 0)
    outline = fake('fmow_sentinel').outline('train', 3)
    path.write_text(path.read_text().replace(other, outline))


def iwildcam(fake, root):
    fake('wilds').write_iwildcam(root)
    path = root / 'iwildcam_v2.0/metadata.csv'
    path.write_text(path.read_text().replace('test,200,', 'test,9,'))


LEAKS = [
    (FMoWRGBDataModule, fmow),
    (FMoWTemporalDataModule, fmow),
    (FMoWSentinelDataModule, fmow_sentinel),
    (IWildCamDataModule, iwildcam),
]


@pytest.mark.parametrize(('module', 'leak'), LEAKS, ids=lambda value: value.__name__)
def test_places_of_training_in_the_test_split_are_counted(fake, tmp_path, module, leak):
    leak(fake, tmp_path)
    with pytest.warns(UserWarning, match="1 in both 'train' and 'test'"):
        module(tmp_path).setup('test')
    data = module(tmp_path)
    data.setup('fit')
    opened = data.train_dataset
    with pytest.warns(UserWarning, match="1 in both 'train' and 'test'"):
        data.setup('test')
    assert data.train_dataset is opened


def test_tests_need_no_training_data(fake, tmp_path):
    fmow(fake, tmp_path)
    shutil.rmtree(tmp_path / 'train')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        data = FMoWRGBDataModule(tmp_path)
        data.setup('test')
    assert len(data.test_dataset) == 2


def test_splits_of_one_distribution_share_places_on_purpose(fake, tmp_path):
    iwildcam(fake, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        data = IWildCamDataModule(tmp_path, test_split='id_test')
        data.setup('test')
    # Its one photograph is of a camera trap that has training photographs, too.
    (place,) = data.test_dataset.domains.tolist()
    assert place in IWildCam(tmp_path, 'train').domains.tolist()


def test_numbers_of_another_archive_are_no_places_of_this_one(fake, tmp_path):
    """Camera traps are numbered in each archive, not across them."""
    fake('wilds').write_iwildcam(tmp_path)
    path = tmp_path / 'iwildcam_unlabeled_v1.0/metadata.csv'
    path.write_text(path.read_text().replace('300,', '200,'))
    assert IWildCam(tmp_path, 'test').domains[0] == 200
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        IWildCamDataModule(tmp_path, train_split='extra_unlabeled').setup('test')
