import pytest
import torch
from jsonargparse import ArgumentParser
from torch.testing import assert_close

from torchgeo_explora.datamodules import ScenesDataModule


@pytest.fixture
def root(fake, tmp_path):
    return fake('scenes').write_scenes(tmp_path)


def test_batches(root):
    data = ScenesDataModule(root, batch_size=4, size=32, length=10)
    data.setup('fit')
    batches = list(data.train_dataloader())
    assert [len(batch['image']) for batch in batches] == [4, 4]
    assert batches[0].keys() == {
        *('image', 'path', 'index', 'year', 'month', 'hour'),
        *('longitude', 'latitude'),
    }
    assert data.bands == ('B04', 'B03', 'B02')
    assert data.value_range == (0, 10000)
    assert not data.range_known
    unit = data.aug(batches[0])['image']
    assert_close(unit, batches[0]['image'] / 10000)
    assert data.val_dataloader() == []


def test_prediction_covers_every_pixel_in_order(root):
    """The windows of training are drawn; those of prediction lie side by side."""
    data = ScenesDataModule(root, batch_size=4, size=32, length=10)
    data.setup('predict')
    batches = list(data.predict_dataloader())
    # Four scenes of 160 x 160 pixels.
    assert torch.cat([batch['index'] for batch in batches]).tolist() == list(range(100))
    assert [int(batch['part']) for batch in batches] == list(range(25))


def test_parts_are_left_out_and_shared(root):
    data = ScenesDataModule(root, batch_size=8, size=32)
    data.finished, data.share = lambda: {1, 2}, (1, 2)
    data.setup('predict')
    parts = [int(batch['part']) for batch in data.predict_dataloader()]
    assert parts == [3, 5, 7, 9, 11]
    data.finished = lambda: set(range(13))
    # One is left, or the result would not be written.
    assert [int(batch['part']) for batch in data.predict_dataloader()] == [11]


def test_resolution_of_a_prediction_is_that_of_the_scenes(root):
    with pytest.raises(ValueError, match=r'\*res\* cannot be used for prediction'):
        ScenesDataModule(root, size=32, res=20).setup('predict')


def test_augmentation_of_a_task_survives_another_stage(root):
    data = ScenesDataModule(root, size=32, length=10)
    data.setup('fit')
    data.aug = torch.nn.Identity()
    data.setup('predict')
    assert isinstance(data.aug, torch.nn.Identity)


def test_range_of_each_band(root):
    data = ScenesDataModule(
        root, size=32, length=4, value_range=([1000, 1000, 0], [1100, 1200, 400])
    )
    data.setup('fit')
    image = data.train_dataset[0]['image']
    unit = data.aug({'image': image[None]})['image'][0]
    assert_close(unit[2], image[2] / 400)
    assert unit.min() >= 0
    assert unit.max() <= 1


def test_series(root):
    data = ScenesDataModule(root, batch_size=4, size=32, length=8, times=3)
    data.setup('fit')
    batch = next(iter(data.train_dataloader()))
    assert batch['image'].shape == (4, 3, 3, 32, 32)
    assert batch['timestamps'].shape == (4, 3, 3)


@pytest.mark.parametrize('workers', [0, 2])
def test_workers_read_what_the_main_process_reads(root, workers):
    """Files that are open before the workers start do not disturb them."""
    data = ScenesDataModule(root, 2, workers, size=32, length=16)
    data.setup('predict')
    alone = [data.predict_dataset[i]['image'] for i in range(16)]
    data.finished = lambda: set(range(8, 50))
    batches = list(data.predict_dataloader())
    assert torch.equal(torch.cat([b['image'] for b in batches]), torch.stack(alone))


@pytest.mark.parametrize('paths', ['a', ['a', 'b']])
def test_configuration_may_name_one_path_or_several(paths):
    parser = ArgumentParser()
    parser.add_class_arguments(ScenesDataModule, 'data')
    config = parser.parse_object({'data': {'paths': paths}})
    given = [paths] if isinstance(paths, str) else paths
    assert parser.instantiate_classes(config).data.paths == given
