import warnings

import numpy as np
import pytest
import rasterio
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from PIL import Image
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask, Classification

from torchgeo_explora.datamodules import CSVDataModule, ImageFolderDataModule
from torchgeo_explora.datasets import CSVColumns, NoImagesError, NoSamplesError


def save_images(folder, count=8, size=32, names=('water', 'crop')):
    for i in range(count):
        path = folder / names[i % len(names)] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.random.default_rng(i).integers(0, 256, (size, size, 3))
        Image.fromarray(array.astype('uint8')).save(path)


class Keys(BaseTask):
    """Keeps the batches it is given."""

    def configure_models(self):
        self.model = torch.nn.Linear(1, 1)
        self.seen = {}

    def step(self, batch, stage):
        self.seen.setdefault(stage, []).append(batch)
        return self.model(torch.ones(1)).sum()

    def training_step(self, batch, batch_idx):
        return self.step(batch, 'train')

    def validation_step(self, batch, batch_idx):
        return self.step(batch, 'val')

    def test_step(self, batch, batch_idx):
        return self.step(batch, 'test')

    def predict_step(self, batch, batch_idx):
        return self.step(batch, 'predict')

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


@pytest.fixture
def trainer(tmp_path):
    return Trainer(
        accelerator='cpu',
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


@pytest.mark.filterwarnings('ignore:.*does not have many workers')
def test_every_stage_gets_unit_range_images(tmp_path, trainer):
    save_images(tmp_path / 'data', 20)
    datamodule = ImageFolderDataModule(
        tmp_path / 'data', batch_size=4, val_fraction=0.2, test_fraction=0.2
    )
    task = Keys()
    trainer.fit(task, datamodule)
    trainer.test(task, datamodule, verbose=False)
    trainer.predict(task, datamodule, return_predictions=False)
    for stage, batches in task.seen.items():
        for batch in batches:
            assert batch['image'].min() >= 0
            assert 0.9 < batch['image'].max() <= 1
            assert batch['label'].dtype == torch.long
            assert ('path' in batch) == (stage == 'predict')
            assert len(batch['index']) == len(batch['image'])
    paths = [path for batch in task.seen['predict'] for path in batch['path']]
    assert len(paths) == 20
    assert paths == sorted(paths)
    indices = [i for batch in task.seen['predict'] for i in batch['index'].tolist()]
    assert indices == list(range(20))


@pytest.mark.filterwarnings('ignore:.*does not have many workers')
def test_training_without_validation_images(tmp_path, trainer):
    save_images(tmp_path / 'data', names=('.',))
    task = Keys()
    trainer.fit(task, ImageFolderDataModule(tmp_path / 'data', batch_size=4))
    assert set(task.seen) == {'train'}
    assert set(task.seen['train'][0]) == {'image', 'index'}


@pytest.mark.filterwarnings('ignore')
def test_torchgeo_classification_trains_and_plots(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    save_images(tmp_path / 'data', 12)
    datamodule = ImageFolderDataModule(
        tmp_path / 'data', batch_size=4, val_fraction=0.3, test_fraction=0.2
    )
    task = Classification('resnet18', num_classes=2)
    trainer = Trainer(
        accelerator='cpu',
        max_epochs=1,
        logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule)
    assert 'val_loss' in trainer.callback_metrics


def test_replaced_augmentation_survives_another_stage(tmp_path):
    save_images(tmp_path)
    datamodule = ImageFolderDataModule(tmp_path, batch_size=4)
    datamodule.setup('fit')
    datamodule.aug = torch.nn.Identity()
    datamodule.setup('predict')
    assert isinstance(datamodule.aug, torch.nn.Identity)


def test_value_range_is_known_after_setup(tmp_path):
    save_images(tmp_path)
    datamodule = ImageFolderDataModule(tmp_path, batch_size=4)
    datamodule.setup('fit')
    assert datamodule.value_range == (0.0, 255.0)
    assert datamodule.bands == ('red', 'green', 'blue')
    torch.testing.assert_close(datamodule.mean, torch.tensor(0.0))
    torch.testing.assert_close(datamodule.std, torch.tensor(255.0))
    datamodule = ImageFolderDataModule(
        tmp_path, batch_size=4, value_range=([0, 10, 20], [100, 110, 130])
    )
    datamodule.setup('fit')
    torch.testing.assert_close(datamodule.mean, torch.tensor([0.0, 10, 20]))
    torch.testing.assert_close(datamodule.std, torch.tensor([100.0, 100, 110]))
    sample = datamodule.train_dataset[0]['image']
    normal = datamodule.aug({'image': sample[None]})['image'][0]
    torch.testing.assert_close(normal[2], (sample[2] - 20) / 110)


def test_split_folders_are_found(tmp_path):
    for split, count in (('train', 6), ('val', 4), ('test', 2), ('predict', 3)):
        save_images(tmp_path / split, count)
    datamodule = ImageFolderDataModule(tmp_path, batch_size=3)
    for stage in ('fit', 'validate', 'test', 'predict'):
        datamodule.setup(stage)
    assert len(datamodule.train_dataloader()) == 2
    assert len(datamodule.val_dataloader()) == 2
    assert len(datamodule.test_dataloader()) == 1
    assert len(datamodule.predict_dataset) == 3
    chosen = ImageFolderDataModule(tmp_path, predict_split='test')
    chosen.setup('predict')
    assert len(chosen.predict_dataset) == 2


def test_batch_larger_than_the_training_set_is_refused(tmp_path):
    save_images(tmp_path, 8)
    datamodule = ImageFolderDataModule(tmp_path, batch_size=16)
    datamodule.setup('fit')
    message = r'\*batch_size\* is 16 but .* only 8 training.*batch_size=8 or less'
    with pytest.raises(ValueError, match=message):
        datamodule.train_dataloader()


def test_splits_that_differ_in_bands_are_refused(tmp_path):
    save_images(tmp_path / 'train')
    (tmp_path / 'val').mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        profile = {'count': 4, 'height': 32, 'width': 32, 'dtype': 'uint8'}
        with rasterio.open(tmp_path / 'val' / 'a.tif', 'w', **profile) as file:
            # Not those of a mask: the fourth one would be alpha.
            file.write(np.arange(4096, dtype='uint8').reshape(4, 32, 32))
    datamodule = ImageFolderDataModule(tmp_path, batch_size=4)
    with pytest.raises(ValueError, match=r"split 'val' .*pass \*bands\*"):
        datamodule.setup('fit')
    datamodule = ImageFolderDataModule(tmp_path, batch_size=4, bands=[3, 2, 1])
    datamodule.setup('fit')
    assert datamodule.bands == ('blue', 'green', 'red')


def test_missing_split_is_named(tmp_path):
    save_images(tmp_path)
    with pytest.raises(NoImagesError, match="split 'test'"):
        ImageFolderDataModule(tmp_path).setup('test')


@pytest.mark.parametrize('workers', [0, 1])
def test_damaged_images_do_not_change_the_batch_size(tmp_path, workers):
    save_images(tmp_path, 8)
    next((tmp_path / 'water').iterdir()).write_bytes(b'')
    datamodule = ImageFolderDataModule(
        tmp_path, batch_size=4, num_workers=workers, on_error='skip', prefetch_factor=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        datamodule.setup('fit')
        sizes = [len(batch['image']) for batch in datamodule.train_dataloader()]
    assert sizes == [4, 4]
    assert len(datamodule.train_dataset.skipped) == 1


def test_command_line_reaches_every_argument(tmp_path):
    save_images(tmp_path)
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseDataModule, 'data')
    config = parser.parse_args(
        [
            '--data=torchgeo_explora.datamodules.ImageFolderDataModule',
            f'--data.root={tmp_path}',
            '--data.batch_size=2',
            '--data.size=16',
            '--data.bands=[3, red]',
            '--data.value_range=[0, 100]',
            '--data.val_fraction=0.25',
            '--data.on_error=skip',
            '--data.predict_split=val',
        ]
    )
    datamodule = parser.instantiate_classes(config).data
    datamodule.setup('fit')
    assert datamodule.bands == ('blue', 'red')
    assert datamodule.value_range == (0.0, 100.0)
    assert next(iter(datamodule.train_dataloader()))['image'].shape == (2, 2, 16, 16)
    for value_range in ('[[0, 1], [100, 50]]', 'null'):
        parser.parse_args(
            [
                '--data=torchgeo_explora.datamodules.ImageFolderDataModule',
                f'--data.value_range={value_range}',
            ]
        )


@pytest.mark.parametrize('given', [None, (0, 5000)])
def test_names_of_bands_and_the_certainty_of_the_range_are_passed_on(tmp_path, given):
    array = np.random.default_rng(0).integers(0, 5000, (2, 8, 8)).astype('uint16')
    profile = {'dtype': 'uint16', 'count': 2, 'height': 8, 'width': 8}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with rasterio.open(tmp_path / '0.tif', 'w', **profile) as file:
            file.write(array)
    data = ImageFolderDataModule(
        tmp_path, batch_size=1, band_names=['B02', 'B8A'], value_range=given
    )
    data.setup('fit')
    assert data.bands == ('B02', 'B8A')
    assert data.range_known is (given is not None)


@pytest.fixture
def listed(tmp_path):
    """Write eight images of 32 pixels and a list of them."""
    save_images(tmp_path)
    names = sorted(
        f'{path.parent.name}/{path.name}' for path in tmp_path.rglob('*.png')
    )
    lines = ['path,label,split,site,patient']
    for number, name in enumerate(names):
        split = 'train' if number < 5 else 'val'
        lines.append(f'{name},{name[0]},{split},{number % 2},p{number}')
    (tmp_path / 'metadata.csv').write_text('\n'.join(lines))
    return tmp_path


def test_batches_of_a_csv_file(listed):
    columns = CSVColumns(domain='site', place='patient')
    data = CSVDataModule(listed, 2, columns=columns, predict_split='val')
    data.setup('fit')
    data.setup('predict')
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {'image', 'path', 'label', 'domain', 'index'}
    assert batch['domain'].dtype == torch.long
    assert data.bands == ('red', 'green', 'blue')
    torch.testing.assert_close(data.aug(batch)['image'], batch['image'] / 255)
    assert len(data.val_dataloader()) == len(data.predict_dataloader()) == 2


def test_csv_file_without_validation(listed):
    data = CSVDataModule(listed, 2, columns=CSVColumns(split=None), val_split=None)
    data.setup('fit')
    assert len(data.train_dataset) == 8
    assert data.val_dataloader() == []
    with pytest.raises(NoSamplesError, match=r"split 'test' .* are 'train' \(5\)"):
        CSVDataModule(listed).setup('test')


def test_place_in_two_splits_of_a_csv_file_is_a_leak(listed):
    path = listed / 'metadata.csv'
    path.write_text(path.read_text().replace(',p5', ',p4'))
    with pytest.warns(UserWarning, match="1 in both 'train' and 'val'.*p4"):
        CSVDataModule(listed, columns=CSVColumns(place='patient')).setup('fit')


def test_samples_left_out_are_summed_up_at_the_end(tmp_path):
    save_images(tmp_path, 8)
    (tmp_path / 'crop' / '1.png').write_bytes(b'')
    datamodule = ImageFolderDataModule(tmp_path, batch_size=2, on_error='skip')
    with pytest.warns(UserWarning, match='skipped sample 0'):
        datamodule.setup('predict')
    with pytest.warns(UserWarning, match=r'1 of the 8 samples .* numbers 0'):
        datamodule.teardown('predict')
    (tmp_path / 'crop' / '1.png').unlink()
    datamodule.setup('predict')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        datamodule.teardown('predict')
