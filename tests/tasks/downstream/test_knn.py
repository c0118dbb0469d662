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


@pytest.mark.parametrize(('images', 'processes'), [(32, 3), (32, 2), (2, 4), (32, 1)])
def test_bank_is_the_data_set_in_its_order_whatever_the_number_of_processes(
    task, folder, tmp_path, monkeypatch, images, processes
):
    """All processes run in turn, and get what Lightning's `all_gather` would give."""
    run(task, folder, tmp_path)
    dataset = ImageFolder(folder, split='train')
    bank, _ = embed(task, dataset)
    # Every image with a label of its own, so that none can be taken for another.
    numbered = [
        {'image': dataset[i]['image'], 'label': torch.tensor(i)} for i in range(images)
    ]
    task.trainer.datamodule.train_dataset = numbered
    monkeypatch.setattr(type(task.trainer), 'world_size', processes)
    shares = [[] for _ in range(processes)]
    for turn in range(2):
        for rank in range(processes):
            calls = iter(range(2))

            def all_gather(values, rank=rank, calls=calls, turn=turn):
                call = next(calls)
                if turn == 0:
                    shares[rank].append(values)
                    return torch.stack([values] * processes)
                return torch.stack([of_rank[call] for of_rank in shares])

            monkeypatch.setattr(type(task), 'global_rank', rank)
            monkeypatch.setattr(task, 'all_gather', all_gather)
            task._fill_bank()
            if turn:
                assert task.bank_labels.tolist() == list(range(images))
                torch.testing.assert_close(task.bank, bank[:images])


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
