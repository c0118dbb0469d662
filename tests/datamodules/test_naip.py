import torch
from torch.testing import assert_close

from torchgeo_explora.datamodules import NAIPLandCoverDataModule
from torchgeo_explora.datasets.naip import MEAN, STD


def test_batches(fake, tmp_path):
    root = fake('naip').write_naip(tmp_path)
    data = NAIPLandCoverDataModule(root, 5, size=16, test_split='val+test')
    for stage in ('fit', 'test', 'predict'):
        data.setup(stage)
    batch = next(iter(data.train_dataloader()))
    assert batch['image'].shape == (5, 3, 16, 16)
    assert sorted(batch['label'].tolist()) == [0, 0, 1, 2, 2]
    assert next(iter(data.test_dataloader()))['label'].tolist() == [0, 1, 1, 3, 2]


def test_normalisation_is_satmaes(fake, tmp_path):
    root = fake('naip').write_naip(tmp_path)
    data = NAIPLandCoverDataModule(root, bands=('blue', 'nir'))
    data.setup('fit')
    unit = data.aug({'image': torch.full((1, 2, 4, 4), 51.0)})['image']
    expected = torch.tensor([(0.2 - MEAN[2]) / STD[2], (0.2 - 0.5) / 0.25])
    assert_close(unit[0, :, 0, 0], expected)
    assert data.bands == ('blue', 'nir')
    assert data.value_range == (0, 255)
