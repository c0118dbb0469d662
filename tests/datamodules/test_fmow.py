import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.datamodules import FMoWRGBDataModule, FMoWTemporalDataModule
from torchgeo_explora.datasets.fmow.rgb import MEAN, STD


@pytest.fixture
def root(fake, tmp_path):
    root = fake('fmow').write_fmow(tmp_path)
    for split in ('train', 'val'):
        fake('fmow').write_csv(root, split)
    return root


def test_batches_have_labels_and_no_boxes(root):
    data = FMoWRGBDataModule(root, batch_size=8, size=32)
    for stage in ('fit', 'test', 'predict'):
        data.setup(stage)
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() > {'image', 'label', 'path', 'index', 'year', 'sub_region'}
    assert batch['image'].shape == (8, 3, 32, 32)
    assert sorted(batch['label'].tolist()) == [0, 0, 0, 6, 6, 6, 6, 61]
    (batch,) = data.val_dataloader()
    assert batch['label'].tolist() == [6, 6, 61, 61]
    (batch,) = data.test_dataloader()
    assert batch['label'].tolist() == [6, 6]
    assert data.predict_dataset.split == 'val'


def test_normalisation_is_satmaes(root, golden):
    arrays, _ = golden('fmow_data')
    assert_close(torch.tensor(MEAN), arrays['out.rgb.mean'].float())
    assert_close(torch.tensor(STD), arrays['out.rgb.std'].float())
    data = FMoWRGBDataModule(root)
    raw = arrays['in.rgb.uint8_hwc'].permute(2, 0, 1).float()
    assert_close(data.aug({'image': raw})['image'], arrays['out.rgb.normalized'])
    assert data.value_range == (0, 255)


def test_csv_files_instead_of_folders(root):
    data = FMoWRGBDataModule(
        root, size=32, train_csv='train_62classes.csv', val_csv='val_62classes.csv'
    )
    data.setup('fit')
    assert data.train_dataset.labels.tolist() == [0, 0, 0, 6, 6, 6, 6, 61]
    assert data.val_dataset.labels.tolist() == [6, 6, 61, 61]
    assert (root / '.train_62classes.csv.arrow').exists()


def test_place_in_two_splits_is_a_leak(fake, root):
    """A place is where it lies on the ground, not its number in the folder's name."""
    data = FMoWRGBDataModule(root, size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('warnings.warn', lambda *_, **__: pytest.fail('a warning'))
        data.setup('fit')
    outline = fake('fmow').polygon('train', 'barn', 0)
    path = root / 'val/barn/barn_7/barn_7_0_rgb.jpg'
    fake('fmow').write_image(path, 'barn', 0, '2013-06-07T08:09:10Z', outline)
    with pytest.warns(UserWarning, match="1 in both 'train' and 'val'.*0.001 5.002"):
        data.setup('fit')


def test_batch_larger_than_the_training_set_is_refused(root):
    data = FMoWRGBDataModule(root, batch_size=9)
    data.setup('fit')
    with pytest.raises(ValueError, match=r'only 8 training samples.*batch_size=8'):
        data.train_dataloader()


def test_batches_of_series(root):
    data = FMoWTemporalDataModule(
        root, batch_size=8, size=32, val_csv='val_62classes.csv'
    )
    data.setup('fit')
    data.setup('test')
    batch = next(iter(data.train_dataloader()))
    assert batch['image'].shape == (8, 3, 3, 32, 32)
    assert batch['timestamps'].shape == (8, 3, 3)
    (batch,) = data.val_dataloader()
    assert batch['label'].tolist() == [6, 6, 61, 61]
    # Times of 2013 and 2014: the earlier one first, the image drawn last again.
    assert batch['timestamps'][0].tolist() == [[11, 5, 8], [12, 5, 8], [12, 5, 8]]
    assert batch['timestamps'][1].tolist() == [[11, 5, 8], [11, 5, 8], [12, 5, 8]]
    unit = data.aug(batch)['image']
    expected = (batch['image'][2, 1, 0] / 255 - MEAN[0]) / STD[0]
    assert_close(unit[2, 1, 0], expected)
    assert data.test_dataset.labels.tolist() == [6, 6]
