"""TorchGeo's own data modules, unchanged: what the objective sees of their images."""

import numpy as np
import pytest
import rasterio
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchgeo.datamodules import (
    EuroSATDataModule,
    GeoDataModule,
    RESISC45DataModule,
    SpaceNet1DataModule,
    SSL4EOS12DataModule,
)
from torchgeo.datasets import SSL4EOS12, RasterDataset, SpaceNet1
from torchgeo.main import main
from torchgeo.samplers import RandomPatchSampler

from torchgeo_explora.augment import UnitRange
from torchgeo_explora.callbacks import OnlineKNN, Pictures
from torchgeo_explora.tasks import ExploraDinoTask

RGB = ['B04', 'B03', 'B02']
# Sentinel-2's usual values; the tenth band is cirrus, which is almost dark.
REFLECTANCE = [1350, 1100, 1000, 950, 1200, 2000, 2400, 2300, 750, 12, 1800, 1100, 2600]


class Seen(Callback):
    """Keep the images that the objective gets, and the raw ones before them."""

    def __init__(self):
        self.unit, self.raw = [], []

    def on_fit_start(self, trainer, pl_module):
        pl_module.objective.register_forward_pre_hook(
            lambda module, args: self.unit.append(args[0]['image'])
        )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.raw.append(batch['image'])


def write_tiff(path, array, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=len(array),
        height=array.shape[1],
        width=array.shape[2],
        dtype=array.dtype,
        crs=profile.pop('crs', 'EPSG:32632'),
        transform=profile.pop(
            'transform', rasterio.transform.from_origin(500000, 5000000, 10, 10)
        ),
    ) as file:
        file.write(array)


@pytest.fixture(scope='module')
def eurosat(tmp_path_factory):
    """Two classes with 4 images of 13 bands in each split."""
    root = tmp_path_factory.mktemp('eurosat')
    place = root / 'ds/images/remote_sensing/otherDatasets/sentinel_2/tif'
    random = np.random.default_rng(0)
    level = np.array(REFLECTANCE)[:, None, None]
    for start, split in enumerate(('train', 'val', 'test')):
        names = []
        for name in ('Forest', 'River'):
            for number in range(4 * start + 1, 4 * start + 5):
                image = (level * random.uniform(0, 2, (13, 32, 32))).astype('uint16')
                write_tiff(place / name / f'{name}_{number}.tif', image)
                names.append(f'{name}_{number}.jpg')
        (root / f'eurosat-{split}.txt').write_text('\n'.join(names))
    return root


@pytest.fixture(scope='module')
def resisc45(tmp_path_factory):
    """Two classes with 4 images in each split."""
    root = tmp_path_factory.mktemp('resisc45')
    random = np.random.default_rng(0)
    for start, split in enumerate(('train', 'val', 'test')):
        names = []
        for name in ('airport', 'wetland'):
            folder = root / 'NWPU-RESISC45' / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(4 * start + 1, 4 * start + 5):
                image = random.integers(0, 256, (40, 40, 3)).astype('uint8')
                Image.fromarray(image).save(folder / f'{name}_{number:03}.jpg')
                names.append(f'{name}_{number:03}.jpg')
        (root / f'resisc45-{split}.txt').write_text('\n'.join(names))
    return root


@pytest.fixture
def ssl4eo(tmp_path, monkeypatch):
    """Four places with one season each."""
    random = np.random.default_rng(0)
    bands = SSL4EOS12.metadata['s2c']['bands']
    for place in range(4):
        folder = tmp_path / 'ssl4eo/s2c' / f'{place:07}' / '20200101T000000_a_b'
        for band in bands:
            image = random.integers(0, 9000, (1, 40, 40)).astype('uint16')
            write_tiff(folder / f'{band}.tif', image)
    monkeypatch.setattr(SSL4EOS12, '__len__', lambda self: 4)
    monkeypatch.setattr(SSL4EOS12, 'size', 40)
    return tmp_path / 'ssl4eo'


@pytest.fixture
def spacenet(tmp_path, monkeypatch):
    """Eight training images with masks, and three to predict."""
    random = np.random.default_rng(0)
    root = tmp_path / 'spacenet'
    monkeypatch.setattr(SpaceNet1, 'chip_size', {'3band': (40, 44)})
    for split, count in (('train', 8), ('test', 3)):
        folder = root / 'SN1_buildings' / split
        for number in range(count):
            image = random.integers(0, 256, (3, 40, 44)).astype('uint8')
            write_tiff(folder / '3band' / f'3band_AOI_1_RIO_img{number}.tif', image)
            if split == 'train':
                mask = folder / 'geojson' / f'Geo_AOI_1_RIO_img{number}.geojson'
                mask.parent.mkdir(exist_ok=True)
                mask.write_text('')
    return root


class Scene(RasterDataset):
    """GeoTIFF scenes of three bands."""

    filename_glob = '*.tif'


class SceneDataModule(GeoDataModule):
    """Random patches of scenes, as a user of TorchGeo writes it."""

    def __init__(self, paths, **kwargs):
        super().__init__(Scene, paths=paths, **kwargs)

    def setup(self, stage):
        self.train_dataset = Scene(**self.kwargs)
        self.train_sampler = RandomPatchSampler(
            self.train_dataset, size=self.patch_size, length=self.length
        )


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """One scene of 8-bit values and one of reflectance."""
    root = tmp_path_factory.mktemp('scenes')
    random = np.random.default_rng(0)
    image = random.integers(1, 256, (3, 160, 160))
    write_tiff(root / 'bytes' / 'scene.tif', image.astype('uint8'))
    write_tiff(root / 'reflectance' / 'scene.tif', (image * 20).astype('uint16'))
    return root


@pytest.fixture
def fit(tmp_path, tiny):
    """Train two steps on a data module; returns what was seen."""

    def run(data, callbacks=(), trainer=(), **arguments):
        seen = Seen()
        seed_everything(0)
        options = {'max_steps': 2, 'enable_checkpointing': False} | dict(trainer)
        Trainer(
            accelerator='cpu',
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[seen, *callbacks],
            **options,
        ).fit(ExploraDinoTask(**(tiny | arguments)), data)
        assert seen.unit
        for image in seen.unit:
            assert image.min() >= 0
            assert image.max() <= 1
        return seen

    return run


def assert_scaled(seen, dataset, low, high):
    """Every image is one of the data set's, mapped from low .. high to 0 .. 1."""
    expected = [UnitRange(low, high)(dataset[i]['image']) for i in range(len(dataset))]
    for image in torch.cat(seen.unit):
        assert any(torch.equal(image, other) for other in expected)


def test_eurosat_with_all_bands(fit, eurosat, tmp_path, caplog):
    caplog.set_level('INFO')
    data = EuroSATDataModule(root=eurosat, batch_size=4)
    seen = fit(data, [OnlineKNN(every_n_steps=1), Pictures(images=2)], in_channels=13)
    assert seen.unit[0].shape == (4, 13, 32, 32)
    low, high = data.mean - 2 * data.std, data.mean + 2 * data.std
    assert_scaled(seen, data.train_dataset, low, high)
    assert 'kNN before' in caplog.text
    assert (tmp_path / 'crops.png').exists()


def test_eurosat_in_true_colour(fit, eurosat):
    data = EuroSATDataModule(root=eurosat, batch_size=4, bands=RGB)
    seen = fit(data)
    assert seen.unit[0].shape == (4, 3, 32, 32)
    low, high = data.mean - 2 * data.std, data.mean + 2 * data.std
    assert_scaled(seen, data.train_dataset, low, high)


def test_eurosat_by_the_command(eurosat, tiny, tmp_path, monkeypatch):
    config = {
        'trainer': {
            'accelerator': 'cpu',
            'max_steps': 1,
            'logger': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'enable_checkpointing': False,
            'default_root_dir': str(tmp_path),
        },
        'model': {
            'class_path': 'torchgeo_explora.tasks.ExploraDinoTask',
            'init_args': tiny,
        },
        'data': {
            'class_path': 'torchgeo.datamodules.EuroSATDataModule',
            'init_args': {'batch_size': 4},
            'dict_kwargs': {'root': str(eurosat), 'bands': RGB},
        },
    }
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    monkeypatch.setattr('sys.argv', ['torchgeo'])
    main(['fit', '--config', str(tmp_path / 'config.yaml')])
    assert (tmp_path / 'delta.safetensors').exists()


def test_resisc45s_own_augmentation_is_taken_over(fit, resisc45):
    data = RESISC45DataModule(root=resisc45, batch_size=4)
    assert not isinstance(data.train_aug, nn.Identity)
    seen = fit(data, [OnlineKNN(every_n_steps=1)])
    assert isinstance(data.train_aug, nn.Identity)
    assert_scaled(seen, data.train_dataset, 0, 255)


@pytest.mark.parametrize(
    ('given', 'low', 'high'),
    [
        (None, 0, 10000),
        ((0, 9000), 0, 9000),
        (([0] * 12 + [500], [9000] * 13), [0] * 12 + [500], [9000] * 13),
    ],
)
def test_ssl4eo_s12(fit, ssl4eo, caplog, given, low, high):
    caplog.set_level('INFO')
    data = SSL4EOS12DataModule(root=ssl4eo, batch_size=2)
    seen = fit(
        data,
        [OnlineKNN()],
        in_channels=13,
        modules=['patch_embed'],
        value_range=given,
    )
    assert seen.unit[0].shape == (2, 13, 40, 40)
    assert_scaled(seen, data.dataset, low, high)
    assert 'online kNN is off: there is no train split' in caplog.text


def test_spacenet1_images_are_neither_padded_nor_normalised(fit, spacenet, caplog):
    caplog.set_level('INFO')
    data = SpaceNet1DataModule(root=spacenet, batch_size=2)
    seen = fit(data, [OnlineKNN()])
    assert seen.unit[0].shape == (2, 3, 40, 44)
    assert_scaled(seen, data.train_dataset, 0, 255)
    assert 'online kNN is off: the train split has no class labels' in caplog.text


def test_spacenet1_has_images_to_embed(spacenet, tiny, tmp_path):
    data = SpaceNet1DataModule(root=spacenet, batch_size=2)
    trainer = Trainer(accelerator='cpu', logger=False, default_root_dir=tmp_path)
    batches = trainer.predict(ExploraDinoTask(**tiny), data)
    assert [tuple(batch.shape) for batch in batches] == [(2, 24), (1, 24)]
    assert (tmp_path / 'embeddings.parquet').exists()


def test_patches_of_a_scene(fit, scene, caplog):
    caplog.set_level('INFO')
    data = SceneDataModule(scene / 'bytes', batch_size=2, patch_size=40, length=8)
    seen = fit(data, [OnlineKNN()])
    assert seen.unit[0].shape == (2, 3, 40, 40)
    for unit, raw in zip(seen.unit, seen.raw, strict=True):
        assert raw.max() > 1
        assert_close(unit, raw / 255)
    assert 'online kNN is off' in caplog.text


def test_patches_of_a_scene_are_the_same_after_an_interruption(fit, scene, tmp_path):
    """4 batches an epoch: step 3 lies in the first, 6 in the second."""

    def data():
        return SceneDataModule(scene / 'bytes', batch_size=2, patch_size=40, length=8)

    save = ModelCheckpoint(tmp_path, '{step}', every_n_train_steps=1, save_top_k=-1)
    options = {'max_steps': 6, 'enable_checkpointing': True}
    whole = fit(data(), [save], options)
    for step in (3, 5):
        seen = Seen()
        seed_everything(0)
        task = ExploraDinoTask.load_from_checkpoint(tmp_path / f'step={step}.ckpt')
        Trainer(
            accelerator='cpu',
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            max_steps=6,
            callbacks=[seen],
        ).fit(task, data(), ckpt_path=tmp_path / f'step={step}.ckpt')
        assert len(seen.raw) == 6 - step
        for image, other in zip(seen.raw, whole.raw[step:], strict=True):
            assert torch.equal(image, other)
    first, second = (torch.cat(part) for part in (whole.raw[:2], whole.raw[4:]))
    assert not torch.equal(first, second)


def test_reflectance_under_the_default_range_is_refused(fit, scene):
    data = SceneDataModule(scene / 'reflectance', batch_size=2, patch_size=40, length=4)
    with pytest.raises(ValueError, match=r'lie outside the value range.*\*value_range'):
        fit(data)
    seen = fit(data, value_range=(0, 5100))
    assert_close(seen.unit[0], seen.raw[0] / 5100)


def test_another_number_of_bands_says_what_to_set(fit, eurosat):
    data = EuroSATDataModule(root=eurosat, batch_size=4)
    with pytest.raises(ValueError, match=r', 13, 32, 32\).*set \*in_channels\*'):
        fit(data)
    data = EuroSATDataModule(root=eurosat, batch_size=4, bands=RGB)
    with pytest.raises(ValueError, match=r'expected \(B, 13, H, W\): choose its bands'):
        fit(data, in_channels=13)


def test_batch_that_is_larger_than_the_training_set_is_refused(fit, eurosat):
    data = EuroSATDataModule(root=eurosat, batch_size=64, bands=RGB)
    with pytest.raises(ValueError, match='no full batch of 64'):
        fit(data)
