"""Nearest neighbours by TorchGeo's own command."""

import csv

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn.functional import normalize

from tests.tasks.small_runs import VIT, command, images, write_config
from torchgeo_explora.augment import Preprocess, UnitRange
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.functional import knn_vote
from torchgeo_explora.tasks import ExploraKNNTask

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture
def task():
    torch.manual_seed(0)
    return ExploraKNNTask(**VIT, k=(1, 5))


def run(task, folder, place, stage='validate', **arguments):
    trainer = Trainer(accelerator='cpu', logger=False, default_root_dir=place)
    datamodule = ImageFolderDataModule(folder, batch_size=8, **arguments)
    (metrics,) = getattr(trainer, stage)(task, datamodule, verbose=False)
    return metrics


@torch.no_grad()
def embed(task, dataset):
    raw = torch.stack([sample['image'] for sample in dataset])
    backbone = task.backbone.eval()
    view = Preprocess(32, backbone.mean, backbone.std)(UnitRange(0, 255)(raw))
    return normalize(backbone(view).cls, dim=-1), torch.tensor(dataset.labels)


def test_accuracy_is_that_of_the_vote_of_the_training_set(task, folder, tmp_path):
    metrics = run(task, folder, tmp_path)
    bank, labels = embed(task, ImageFolder(folder, split='train'))
    queries, truth = embed(task, ImageFolder(folder, split='val'))
    for k in (1, 5):
        winners = knn_vote(bank, labels, queries, k, 2).argmax(1)
        expected = (winners == truth).float().mean().item()
        assert metrics[f'val_knn_{k}'] == pytest.approx(expected)
    with (tmp_path / 'knn_val.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['k'] for row in rows] == ['1', '5']


def test_bank_keeps_the_order_of_the_data_set_over_processes(
    task, folder, tmp_path, monkeypatch
):
    """Three processes in turn, and their shares put together."""
    run(task, folder, tmp_path)
    alone, labels = task.bank, task.bank_labels
    shares = []
    monkeypatch.setattr(type(task.trainer), 'world_size', 3)
    monkeypatch.setattr(
        task, '_gathered', lambda values: shares.append(values) or values
    )
    for rank in range(3):
        monkeypatch.setattr(type(task), 'global_rank', rank)
        task._fill_bank()
    whole = [torch.stack(shares[i::2]).transpose(0, 1).flatten(0, 1) for i in (0, 1)]
    torch.testing.assert_close(whole[0][: len(alone)], alone)
    assert torch.equal(whole[1][: len(labels)], labels)


def test_bank_has_the_precision_of_the_queries(task, folder, tmp_path):
    trainer = Trainer(
        accelerator='cpu',
        precision='bf16-mixed',
        logger=False,
        default_root_dir=tmp_path,
    )
    trainer.validate(task, ImageFolderDataModule(folder, batch_size=8), verbose=False)
    bank, _ = embed(task, ImageFolder(folder, split='train'))
    assert not torch.allclose(task.bank, bank, atol=1e-6)
    with torch.autocast('cpu', torch.bfloat16):
        bank, _ = embed(task, ImageFolder(folder, split='train'))
    torch.testing.assert_close(task.bank, bank.float())


def test_k_above_the_bank_is_reduced_and_said(folder, tmp_path):
    task = ExploraKNNTask(**VIT, k=(20, 100, 200))
    with pytest.warns(UserWarning, match=r'32 images: \*k\* \[100, 200\] are reduced'):
        metrics = run(task, folder, tmp_path)
    assert set(metrics) == {'val_knn_20', 'val_knn_32'}


def test_a_class_without_images_is_no_error(task, folder, tmp_path):
    root = tmp_path / 'images'
    for split in ('train', 'val'):
        (root / split).mkdir(parents=True)
        for name in ('field', 'water'):
            (root / split / name).symlink_to(folder / split / name)
    (root / 'val' / 'forest').symlink_to(folder / 'val' / 'field')
    (root / 'train' / 'forest').mkdir()
    metrics = run(task, root, tmp_path)
    assert 0 <= metrics['val_knn_5'] <= 1


@pytest.mark.parametrize('k', [(), (0, 5)])
def test_no_neighbours_are_an_error(k):
    with pytest.raises(ValueError, match=r'\*k\* is'):
        ExploraKNNTask(**VIT, k=k)


def test_there_is_no_fit(task, folder, tmp_path):
    trainer = Trainer(accelerator='cpu', logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match='trains nothing'):
        trainer.fit(task, ImageFolderDataModule(folder, batch_size=8))


@pytest.mark.cli
def test_command(folder, tmp_path):
    root = tmp_path / 'images'
    root.mkdir()
    for split, source in (('train', 'train'), ('test', 'val')):
        (root / split).symlink_to(folder / source)
    config = write_config(tmp_path, 'ExploraKNNTask', {'k': [5]}, images(root))
    command('test', config)
    assert (tmp_path / 'knn_test.csv').exists()
    command('predict', config)
    assert (tmp_path / 'embeddings.parquet').exists()
