import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.datamodules import (
    Camelyon17DataModule,
    GlobalWheatDataModule,
    IWildCamDataModule,
)


def test_camelyon17(fake, tmp_path, recwarn):
    root = fake('wilds').write_camelyon17(tmp_path)
    data = Camelyon17DataModule(root, batch_size=4)
    for stage in ('fit', 'test', 'predict'):
        data.setup(stage)
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {'image', 'label', 'domain', 'path', 'index'}
    assert batch['image'].shape == (4, 3, 96, 96)
    assert set(batch['domain'].tolist()) == {0, 4}
    assert next(iter(data.val_dataloader()))['domain'].tolist() == [1]
    assert next(iter(data.test_dataloader()))['label'].tolist() == [0, 1]
    assert not recwarn.list
    unit = data.aug({'image': torch.full((1, 3, 2, 2), 255.0)})['image']
    assert_close(unit[0, 0, 0, 0], torch.tensor((1 - 0.485) / 0.229))


def test_pretraining_without_labels(fake, tmp_path):
    root = fake('wilds').write_camelyon17(tmp_path)
    data = Camelyon17DataModule(root, batch_size=5, train_split='train_unlabeled')
    data.setup('fit')
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {'image', 'domain', 'path', 'index'}


def test_in_distribution_validation_is_no_leak(fake, tmp_path, recwarn):
    root = fake('wilds').write_iwildcam(tmp_path)
    IWildCamDataModule(root, val_split='id_val').setup('fit')
    IWildCamDataModule(root).setup('fit')
    assert not recwarn.list
    path = root / 'iwildcam_v2.0/metadata.csv'
    path.write_text(path.read_text().replace('val,100,', 'val,7,'))
    with pytest.warns(UserWarning, match="1 in both 'train' and 'val'.*camera trap 7"):
        IWildCamDataModule(root).setup('fit')


def test_iwildcam(fake, tmp_path):
    root = fake('wilds').write_iwildcam(tmp_path)
    data = IWildCamDataModule(root, batch_size=4, size=32, test_split='id_test')
    data.setup('fit')
    data.setup('test')
    assert next(iter(data.train_dataloader()))['image'].shape == (4, 3, 32, 32)
    assert next(iter(data.test_dataloader()))['label'].tolist() == [0]


def test_globalwheat(fake, tmp_path):
    root = fake('wilds').write_globalwheat(tmp_path)
    data = GlobalWheatDataModule(root, batch_size=2, size=64)
    data.setup('fit')
    data.setup('test')
    (batch,) = data.test_dataloader()
    assert batch['image'].shape == (2, 3, 64, 64)
    assert batch['domain'].tolist() == [30, 31]
    assert [len(boxes) for boxes in batch['bbox_xyxy']] == [1, 0]
    assert [labels.tolist() for labels in batch['label']] == [[1], []]
    data = GlobalWheatDataModule(root, 2, size=64, train_split='extra_unlabeled')
    data.setup('fit')
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {'image', 'domain', 'path', 'index'}
