"""The feature cache: other images, labels, weights or tokens give another file."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchgeo.datasets import NonGeoClassificationDataset

from torchgeo_explora.datasets import ImageFolder, Prepared, SyntheticScenes, prepare
from torchgeo_explora.tasks.downstream.contents import contents
from torchgeo_explora.tasks.downstream.feature_cache import cache_features


@pytest.fixture
def root(tmp_path):
    """Two classes of 20 training images."""
    random = np.random.default_rng(0)
    for name in ('field', 'water'):
        place = tmp_path / 'images/train' / name
        place.mkdir(parents=True)
        for number in range(20):
            image = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(image).save(place / f'{number:02}.png')
    return tmp_path / 'images'


def replace(path, level):
    """Write another image of the same size in bytes, and at the same time."""
    state = path.stat()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def key(dataset):
    return contents(DataLoader(dataset, batch_size=4))


@pytest.mark.parametrize('kind', [ImageFolder, NonGeoClassificationDataset])
def test_any_replaced_image_is_another_data_set(root, kind):
    """Formerly 72 of 80 images could be replaced, and the old features were used."""
    place = root if kind is ImageFolder else root / 'train'
    keys = {key(kind(place))}
    paths = sorted(root.glob('train/*/*.png'))
    for path in paths:
        replace(path, 7)
        keys.add(key(kind(place)))
    assert len(keys) == len(paths) + 1
    assert key(kind(place)) in keys


def test_any_other_label_is_another_data_set(root):
    dataset = ImageFolder(root)
    keys = {key(dataset)}
    for index in range(len(dataset)):
        dataset.labels[index] = 1 - dataset.labels[index]
        keys.add(key(dataset))
    assert len(keys) == len(dataset) + 1


def test_another_part_or_size_is_another_data_set(root):
    dataset = ImageFolder(root)
    parts = [Subset(dataset, range(9)), Subset(dataset, range(1, 10)), dataset]
    keys = {key(part) for part in [*parts, ImageFolder(root, size=4)]}
    assert len(keys) == 4
    assert key(Subset(dataset, range(9))) in keys


def test_prepared_data_are_known_by_their_checksums(root, tmp_path):
    keys = set()
    for number in range(2):
        out = tmp_path / str(number)
        prepare(ImageFolder(root), out, progress=False)
        keys.add(key(Prepared(out)))
        # In the middle, where no sample is looked at.
        replace(root / 'train/field/10.png', 7)
    assert len(keys) == 2


def test_a_data_set_without_files_is_read_through():
    dataset = SyntheticScenes(length=40, size=8)
    before = key(dataset)
    assert key(SyntheticScenes(length=40, size=8)) == before
    dataset.images[21, 0, 0, 0] += 1
    assert key(dataset) != before


def test_features_are_computed_anew_for_replaced_images(root, tmp_path):
    def features():
        loader = DataLoader(ImageFolder(root), batch_size=8)
        return cache_features(
            tmp_path / 'cache',
            'train',
            'backbone',
            loader,
            lambda batch: batch['image'].mean((1, 2, 3))[:, None, None],
        )

    before = features()
    replace(root / 'train/field/10.png', 7)
    after = features()
    assert after.features[10].item() == 7 != before.features[10].item()
    assert torch.equal(after[11]['features'], before[11]['features'])
    assert after[30]['label'] == 1
    assert len(list((tmp_path / 'cache').glob('*.labels.npy'))) == 2
