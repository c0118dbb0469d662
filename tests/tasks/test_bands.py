"""Bands of TorchGeo's data modules, read from files and picked by name."""

import numpy as np
import pytest
import rasterio
import torch
from torchgeo.datamodules import (
    EuroSATDataModule,
    EuroSATSpatialDataModule,
    GeoDataModule,
    Sentinel2CDLDataModule,
    SSL4EOS12DataModule,
)
from torchgeo.datasets import SSL4EOS12, EuroSAT, Sentinel2
from torchgeo.samplers import RandomPatchSampler

from torchgeo_explora.augment import spell_band
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.datasets.pixels.sentinel2 import BANDS
from torchgeo_explora.models.backbones.group_channel import SATMAE_BANDS
from torchgeo_explora.tasks.run.raw_images import select_bands

LEVEL2A = tuple(band for band in BANDS if band != 'B10')
SIZE = 32


def mark(band):
    """Return the value of all pixels of a band, which tells it from the others."""
    return 100 * (1 + BANDS.index(spell_band(band)))


def write(path, bands, names=None, size=SIZE):
    """Write a GeoTIFF in which every band has its own value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [mark(band) for band in bands]
    image = np.broadcast_to(np.array(values)[:, None, None], (len(bands), size, size))
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=len(bands),
        height=size,
        width=size,
        dtype='uint16',
        crs='EPSG:32632',
        transform=rasterio.transform.from_origin(500000, 5000000, 10, 10),
    ) as file:
        file.write(image.astype('uint16'))
        for index, name in enumerate(names or (), start=1):
            file.set_band_description(index, name)


def eurosat(root, kind=EuroSATDataModule, listing='eurosat', **arguments):
    place = root / 'ds/images/remote_sensing/otherDatasets/sentinel_2/tif'
    for start, split in enumerate(('train', 'val', 'test')):
        names = [f'Forest_{2 * start + i}' for i in (1, 2)]
        for name in names:
            write(place / 'Forest' / f'{name}.tif', EuroSAT.all_band_names)
        lines = '\n'.join(f'{name}.jpg' for name in names)
        (root / f'{listing}-{split}.txt').write_text(lines)
    return kind(root=root, batch_size=2, **arguments)


def eurosat_spatial(root):
    return eurosat(root, EuroSATSpatialDataModule, 'eurosat-spatial')


def eurosat_of_fewer_bands(root):
    return eurosat(root, bands=('B12', *SATMAE_BANDS[:-1], 'B01'))


def ssl4eo(root, split='s2c'):
    for place in range(2):
        folder = root / split / f'{place:07}' / '20200101T000000_a_b'
        for band in SSL4EOS12.metadata[split]['bands']:
            write(folder / f'{band}.tif', [band])
    return SSL4EOS12DataModule(root=root, batch_size=2, split=split)


def ssl4eo_level2a(root):
    return ssl4eo(root, 's2a')


class Scenes(GeoDataModule):
    """Random patches of Sentinel-2 scenes, as a user of TorchGeo writes it."""

    def __init__(self, paths):
        super().__init__(
            Sentinel2, batch_size=2, patch_size=SIZE, length=2, paths=paths
        )

    def setup(self, stage):
        self.train_dataset = Sentinel2(bands=LEVEL2A, **self.kwargs)
        self.train_sampler = RandomPatchSampler(self.train_dataset, size=SIZE, length=2)


def _scene(root, size):
    for band in LEVEL2A:
        write(root / f'T32TPS_20200101T000000_{band}.tif', [band], size=size)


def sentinel2(root):
    _scene(root, 2 * SIZE)
    return Scenes(root)


def sentinel2_and_masks(root):
    _scene(root / 's2', 256)
    write(root / 'cdl' / '2020_30m_cdls.tif', ['B01'], size=256)
    return Sentinel2CDLDataModule(
        batch_size=2,
        patch_size=SIZE,
        length=2,
        sentinel2_paths=root / 's2',
        sentinel2_bands=LEVEL2A,
        cdl_paths=root / 'cdl',
        cdl_years=[2020],
        cdl_checksum=False,
    )


def folder(root):
    for number, bands in enumerate((LEVEL2A, LEVEL2A[::-1])):
        write(root / f'{number}.tif', bands, bands)
    return ImageFolderDataModule(root, batch_size=2)


def folder_of_two_bands(root):
    write(root / '0.tif', ['B8A', 'B04'], ['B8A', 'B4'])
    return ImageFolderDataModule(root, batch_size=1)


def folder_without_descriptions(root):
    write(root / '0.tif', EuroSAT.all_band_names)
    names = EuroSAT.all_band_names
    return ImageFolderDataModule(root, batch_size=1, band_names=names)


@pytest.fixture
def first(tmp_path, monkeypatch):
    """Return the data module of a function above and its first training batch."""
    monkeypatch.setattr(SSL4EOS12, '__len__', lambda self: 2)
    monkeypatch.setattr(SSL4EOS12, 'size', SIZE)

    def read(make):
        data = make(tmp_path)
        data.prepare_data()
        data.setup('fit')
        return data, next(iter(data.train_dataloader()))['image']

    return read


@pytest.mark.parametrize(
    'make',
    [
        eurosat,
        eurosat_spatial,
        eurosat_of_fewer_bands,
        ssl4eo,
        ssl4eo_level2a,
        sentinel2,
        sentinel2_and_masks,
        folder,
        folder_without_descriptions,
    ],
)
def test_every_band_of_the_backbone_is_the_one_of_its_name(first, make):
    data, image = first(make)
    chosen = select_bands(data, SATMAE_BANDS)(image)
    expected = torch.tensor([mark(band) for band in SATMAE_BANDS], dtype=chosen.dtype)
    assert torch.equal(chosen, expected.view(-1, 1, 1).expand_as(chosen))


def test_a_backbone_of_other_bands_gets_its_own(first):
    data, image = first(folder_of_two_bands)
    chosen = select_bands(data, ['B04', 'B08A'])(image)
    assert chosen[0, :, 0, 0].tolist() == [mark('B04'), mark('B8A')]


@pytest.mark.parametrize(
    ('make', 'missing'),
    [
        (folder_of_two_bands, 'B02, B03, B05'),
        (ssl4eo_level2a, 'B10'),
    ],
)
def test_a_missing_band_is_named_in_a_sentence(first, make, missing):
    data, _ = first(make)
    wanted = BANDS if missing == 'B10' else SATMAE_BANDS
    with pytest.raises(ValueError, match=f'takes {missing}.* the images do not have'):
        select_bands(data, wanted)


def test_names_for_files_without_descriptions_have_to_fit(tmp_path):
    write(tmp_path / '0.tif', ['B02', 'B03'])
    data = ImageFolderDataModule(tmp_path, batch_size=1, band_names=['B02'])
    with pytest.raises(ValueError, match=r'\*band_names\* has 1 names, .* has 2 bands'):
        data.setup('fit')
