import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.augment import Quantize
from torchgeo_explora.datamodules import FMoWSentinelDataModule


@pytest.fixture
def root(fake, tmp_path):
    return fake('fmow_sentinel').write_fmow_sentinel(tmp_path)


def test_batches(root):
    data = FMoWSentinelDataModule(root, batch_size=5, bands=['B04', 'B03', 'B02'])
    for stage in ('fit', 'test', 'predict'):
        data.setup(stage)
    batch = next(iter(data.train_dataloader()))
    assert batch['image'].shape == (5, 3, 96, 96)
    assert sorted(batch['label'].tolist()) == [0, 0, 0, 6, 61]
    assert next(iter(data.val_dataloader()))['label'].tolist() == [0, 6]
    assert next(iter(data.test_dataloader()))['label'].tolist() == [61]
    assert data.predict_dataset.split == 'val'
    assert data.bands == ('B04', 'B03', 'B02')


def test_normalisation_is_satmaes(golden):
    arrays, _ = golden('fmow_data')
    raw = arrays['in.sentinel.img_hwc'].permute(2, 0, 1)
    data = FMoWSentinelDataModule()
    unit = data.aug({'image': raw[None]})['image'][0]
    # To the rounding of float32 where a value meets a step of the 8 bits.
    steps = (Quantize()(unit) - arrays['out.sentinel.to_tensor_chw']).abs() * 255
    assert (steps > 0.5).float().mean() < 0.01
    assert steps.max() < 1.5
    assert unit.min() == 0
    assert_close(unit.max(), torch.tensor(1.0))


def test_csv_files_of_the_users(root):
    lines = (root / 'train.csv').read_text().splitlines()
    (root / 'small.csv').write_text('\n'.join(lines[:3]))
    data = FMoWSentinelDataModule(root, train_csv='small.csv')
    data.setup('fit')
    assert data.train_dataset.labels.tolist() == [0, 61]


def test_place_in_two_splits_is_a_leak(fake, root):
    data = FMoWSentinelDataModule(root)
    path = root / 'val.csv'
    outline = fake('fmow_sentinel').outline
    path.write_text(path.read_text().replace(outline('val', 0), outline('train', 1)))
    with pytest.warns(UserWarning, match="1 in both 'train' and 'val'"):
        data.setup('fit')
