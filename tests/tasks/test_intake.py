"""Raw batches: the data module's normalisation is taken over before the first one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchgeo import datamodules

from torchgeo_explora.tasks.intake import require_predict_set, take_over, unit_range


def _raw(count=2, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 8, 8), generator=generator).float()


@pytest.mark.parametrize(
    'name', ['RESISC45DataModule', 'SpaceNet1DataModule', 'EuroSATDataModule']
)
@pytest.mark.parametrize('stage', ['training', 'validating', 'testing', 'predicting'])
def test_batches_come_as_they_are_read(name, stage):
    module = getattr(datamodules, name)()
    take_over(module)
    stages = ('training', 'validating', 'sanity_checking', 'testing', 'predicting')
    module.trainer = SimpleNamespace(**{key: key == stage for key in stages})
    image = _raw(channels=len(module.mean.flatten()) if module.mean.ndim else 3)
    batch = module.on_after_batch_transfer({'image': image.clone()}, 0)
    assert torch.equal(batch['image'], image)


def test_augmentation_that_is_not_there_stays_away():
    module = SimpleNamespace(train_aug=None)
    take_over(module)
    assert list(vars(module)) == ['train_aug']
    assert isinstance(module.train_aug, nn.Identity)
    take_over(None)


def test_a_given_range_goes_before_the_data_modules():
    module = SimpleNamespace(value_range=(0.0, 255.0))
    image = _raw()
    assert_close(unit_range((0, 1000), module)(image), image / 1000)
    assert_close(unit_range(None, module)(image), image / 255)


def test_a_given_range_may_be_per_channel():
    image = torch.full((1, 2, 1, 1), 30.0)
    unit = unit_range(([0, 20], [60, 40]), None)(image)
    assert_close(unit.flatten(), torch.tensor([0.5, 0.5]))


def test_no_range_at_all_asks_for_one():
    with pytest.raises(ValueError, match=r'give \*value_range\* as \[low, high\]'):
        unit_range(None, None)
    with pytest.raises(ValueError, match=r'SimpleNamespace has no \*mean\*'):
        unit_range(None, SimpleNamespace())


@pytest.mark.parametrize('name', ['EuroSATDataModule', 'RESISC45DataModule'])
def test_nothing_to_predict_on_is_an_error(name):
    module = getattr(datamodules, name)()
    module.setup('predict')
    with pytest.raises(ValueError, match=f'{name} has no predict set.*ImageFolder'):
        require_predict_set(module)


@pytest.mark.parametrize('attribute', ['predict_dataset', 'dataset'])
def test_a_predict_set_is_accepted(attribute):
    require_predict_set(SimpleNamespace(**{attribute: [1]}))


def test_own_loaders_without_a_data_module_are_accepted():
    require_predict_set(None)
