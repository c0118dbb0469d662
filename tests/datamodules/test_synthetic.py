import pytest
import torch
from jsonargparse import ArgumentParser
from torchgeo.datamodules import BaseDataModule

from torchgeo_explora.datamodules import SyntheticScenesDataModule


@pytest.mark.parametrize(('bands', 'channels'), [('rgb', 3), ('s2', 13)])
def test_every_stage_has_batches(bands, channels):
    datamodule = SyntheticScenesDataModule(
        bands=bands, size=16, num_train=20, num_val=5, num_test=7, batch_size=8
    )
    for stage in ('fit', 'validate', 'test', 'predict'):
        datamodule.setup(stage)
    assert len(datamodule.train_dataloader()) == 2
    assert len(datamodule.val_dataloader()) == 1
    batch = next(iter(datamodule.test_dataloader()))
    assert batch['image'].shape == (7, channels, 16, 16)
    assert batch['label'].tolist() == list(range(7))
    other = next(iter(datamodule.predict_dataloader()))
    assert other['image'].shape == batch['image'].shape
    assert not torch.equal(other['image'], batch['image'])


@pytest.mark.parametrize('bands', ['rgb', 's2'])
def test_default_augmentation_maps_the_value_range_to_unit_range(bands):
    datamodule = SyntheticScenesDataModule(bands=bands, num_train=64, size=16)
    datamodule.setup('fit')
    low, high = (torch.as_tensor(end) for end in datamodule.value_range)
    image = datamodule.train_dataset[0]['image'][None]
    normal = datamodule.aug({'image': image})['image']
    expected = (image - low.view(-1, 1, 1)) / (high - low).view(-1, 1, 1)
    torch.testing.assert_close(normal, expected)
    assert datamodule.train_dataset.value_range == datamodule.value_range
    assert datamodule.train_dataset.bands == datamodule.bands


def test_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(ValueError, match=r'\*batch_size\* is 64 but .*batch_size=32'):
        SyntheticScenesDataModule(num_train=32)


def test_command_line_reaches_every_argument():
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseDataModule, 'data')
    config = parser.parse_args(
        [
            '--data=torchgeo_explora.datamodules.SyntheticScenesDataModule',
            '--data.domain=target',
            '--data.bands=rgb',
            '--data.size=16',
            '--data.num_train=10',
            '--data.num_val=10',
            '--data.seed=3',
            '--data.batch_size=5',
        ]
    )
    datamodule = parser.instantiate_classes(config).data
    datamodule.setup('fit')
    assert next(iter(datamodule.train_dataloader()))['image'].shape == (5, 3, 16, 16)
