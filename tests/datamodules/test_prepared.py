import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.datamodules import PreparedDataModule
from torchgeo_explora.datasets import (
    Camelyon17,
    FMoWRGB,
    FMoWSentinel,
    GlobalWheat,
    prepare,
)


@pytest.fixture
def fmow(fake, tmp_path):
    root = fake('fmow').write_fmow(tmp_path)
    for split in ('train', 'val'):
        dataset = FMoWRGB(root, split, size=32)
        prepare(dataset, tmp_path / 'out' / split, samples_per_shard=2, progress=False)
    return tmp_path / 'out'


@pytest.mark.parametrize('stream', [0, 4])
def test_batches(fmow, stream):
    data = PreparedDataModule(fmow, batch_size=4, stream=stream)
    data.setup('fit')
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() > {'image', 'label', 'path', 'index', 'year', 'sub_region'}
    assert batch['image'].shape == (4, 3, 32, 32)
    assert next(iter(data.val_dataloader()))['label'].tolist() == [6, 6, 61, 61]
    assert data.value_range == (0, 255)
    assert_close(data.aug(batch)['image'], batch['image'] / 255)


@pytest.mark.parametrize('stream', [0, 4])
def test_what_to_do_with_damaged_samples_is_handed_on(fmow, stream):
    data = PreparedDataModule(fmow, stream=stream, on_error='skip')
    data.setup('fit')
    assert data.train_dataset.on_error == data.val_dataset.on_error == 'skip'


def test_bands_and_range_are_those_of_the_raw_form(fake, tmp_path):
    root = fake('fmow_sentinel').write_fmow_sentinel(tmp_path)
    raw = FMoWSentinel(root, bands=('B04', 'B8A'), size=16)
    prepare(raw, tmp_path / 'out/train', progress=False)
    data = PreparedDataModule(tmp_path / 'out', batch_size=5)
    data.setup('fit')
    assert data.bands == ('B04', 'B8A')
    assert data.value_range == raw.value_range
    assert data.val_dataloader() == []
    batch = next(iter(data.train_dataloader()))
    unit = data.aug(batch)['image']
    low, high = (torch.tensor(end).view(-1, 1, 1) for end in raw.value_range)
    assert_close(unit, (batch['image'] - low) / (high - low))


@pytest.mark.parametrize(
    ('root', 'split', 'has_val'),
    [
        ('s3://bucket/fmow', 'val', True),
        ('s3://bucket/fmow', None, False),
        ('nowhere', 'val', False),
    ],
)
def test_validation_is_left_out_where_there_is_none(root, split, has_val):
    data = PreparedDataModule(root, stream=4, val_split=split)
    assert data.has_val == has_val
    assert has_val or data.val_dataloader() == []


def test_own_statistics(fmow):
    data = PreparedDataModule(fmow, mean=[100, 110, 120], std=[50, 50, 50])
    data.setup('fit')
    unit = data.aug({'image': torch.full((1, 3, 2, 2), 300.0)})['image']
    assert unit[0, :, 0, 0].tolist() == pytest.approx([4, 3.8, 3.6])
    with pytest.raises(ValueError, match='given together'):
        PreparedDataModule(fmow, mean=[0])


def test_boxes_stay_apart(fake, tmp_path):
    raw = GlobalWheat(fake('wilds').write_globalwheat(tmp_path), size=32)
    prepare(raw, tmp_path / 'out/train', progress=False)
    data = PreparedDataModule(tmp_path / 'out', batch_size=4)
    data.setup('fit')
    batch = next(iter(data.train_dataloader()))
    assert sorted(len(boxes) for boxes in batch['bbox_xyxy']) == [0, 1, 1, 2]
    assert isinstance(batch['label'], list)


def test_place_in_two_splits_is_a_leak(fake, tmp_path):
    root = fake('wilds').write_camelyon17(tmp_path)
    for split, folder in (('train', 'train'), ('train_unlabeled', 'val')):
        raw = Camelyon17(root, split, size=16)
        prepare(raw, tmp_path / 'out' / folder, progress=False)
    with pytest.warns(UserWarning, match="2 in both 'train' and 'val'.*patient_004"):
        PreparedDataModule(tmp_path / 'out').setup('fit')
    with pytest.warns(UserWarning, match="2 in both 'train' and 'val'.*patient_004"):
        PreparedDataModule(tmp_path / 'out', stream=2).setup('fit')
    with pytest.warns(UserWarning, match="2 in both 'train' and 'val'.*patient_004"):
        PreparedDataModule(tmp_path / 'out', test_split='val').setup('test')
