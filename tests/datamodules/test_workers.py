"""Workers that do not fork: all that they get is pickled, and is small."""

import csv
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from tests.tasks.small_runs import VIT
from torchgeo_explora import datamodules
from torchgeo_explora.callbacks import OnlineKNN
from torchgeo_explora.datamodules import ImageFolderDataModule, PreparedDataModule
from torchgeo_explora.datasets import CSVColumns, FMoWRGB, prepare
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraKNNTask,
    ExploraLinearProbeTask,
    ExploraMAETask,
)


@pytest.fixture(scope='module', autouse=True)
def forkserver():
    """Start workers as Python 3.14 does; what they import is imported once."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_forkserver_preload(
        ['torchgeo_explora.datasets', 'torchgeo_explora.tasks']
    )
    multiprocessing.set_start_method('forkserver', force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def prepared(fake, root):
    fake('fmow').write_fmow(root / 'raw')
    for split in ('train', 'val'):
        dataset = FMoWRGB(root / 'raw', split, size=32)
        prepare(dataset, root / 'out' / split, samples_per_shard=4, progress=False)
    return root / 'out'


def csv_file(images, root):
    with (root / 'images.csv').open('w') as file:
        writer = csv.writer(file)
        writer.writerow(['filename', 'split', 'label'])
        for path in sorted(images.glob('*/*/*.png')):
            writer.writerow([path.relative_to(images), *path.parts[-3:-1]])
    return root / 'images.csv'


def build(name, fake, images, root):
    """Return a data module on a few images, with the arguments that it needs."""
    kind = getattr(datamodules, name)
    if name == 'CSVDataModule':
        columns = CSVColumns(path='filename', split='split', label='label')
        file = str(csv_file(images, root))
        return kind(images, csv=file, columns=columns, index_dir=str(root))
    if name == 'ImageFolderDataModule':
        return kind(images)
    if name == 'PreparedDataModule':
        return kind(prepared(fake, root))
    if name == 'ScenesDataModule':
        return kind(fake('scenes').write_scenes(root), size=32, length=4)
    if name == 'RasterSceneDataModule':
        scene = min(fake('scenes').write_scenes(root).rglob('*.tif'))
        return kind(str(scene), size=32, overlap=0, block=64)
    if name == 'SyntheticScenesDataModule':
        return kind(num_train=10, num_val=10, num_test=10, size=16, batch_size=2)
    if name == 'NAIPLandCoverDataModule':
        return kind(fake('naip').write_naip(root), size=16)
    if name == 'FMoWSentinelDataModule':
        return kind(fake('fmow_sentinel').write_fmow_sentinel(root), size=16)
    if name.startswith('FMoW'):
        return kind(fake('fmow').write_fmow(root), size=32)
    write = f'write_{name.removesuffix("DataModule").lower()}'
    sized = {} if name.startswith('Camelyon') else {'size': 32}
    return kind(getattr(fake('wilds'), write)(root), **sized)


def first_batch(loader):
    return next(iter(loader))


@pytest.mark.parametrize('name', datamodules.__all__)
def test_every_data_module_reads_in_workers_that_do_not_fork(
    name, fake, tiny_images, tmp_path
):
    data = build(name, fake, tiny_images, tmp_path)
    data.batch_size = 2
    stage = 'predict' if name == 'RasterSceneDataModule' else 'fit'
    data.setup(stage)
    make = data.predict_dataloader if stage == 'predict' else data.train_dataloader
    keys = first_batch(make()).keys()
    data.num_workers = 1
    batch = first_batch(make())
    assert batch.keys() == keys
    assert batch['image'].isfinite().all()
    # Tensors go through shared memory, and tables through their files.
    loader = make()
    assert len(ForkingPickler.dumps((loader.collate_fn, loader.dataset))) < 20_000


def test_a_stream_is_read_in_workers_that_do_not_fork(fake, tmp_path):
    """Workers share the bytes of the index."""
    data = PreparedDataModule(prepared(fake, tmp_path), 2, 1, stream=2)
    data.setup('fit')
    dataset = data.train_dataset
    assert len(dataset.keys) == dataset.table.num_rows
    assert first_batch(data.train_dataloader())['image'].shape == (2, 3, 32, 32)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.table.equals(dataset.table)
    size = len(ForkingPickler.dumps(dataset))
    dataset._index = torch.cat([dataset._index] * 1000).share_memory_()
    assert len(ForkingPickler.dumps(dataset)) < size + 100


def run(place, **arguments):
    return Trainer(
        accelerator='cpu',
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=place,
        **arguments,
    )


def read(loader):
    return sum(len(batch['label']) for batch in loader)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', ['classification', 'knn', 'probe', 'online'])
def test_tasks_and_online_knn_read_in_workers_that_do_not_fork(
    case, tiny_images, tmp_path
):
    data = ImageFolderDataModule(tiny_images, 8, 1)
    if case == 'knn':
        run(tmp_path).validate(ExploraKNNTask(k=(1,), **VIT), data, verbose=False)
        return
    if case == 'online':
        watch = OnlineKNN(every_n_steps=2)
        task = ExploraMAETask(**VIT, rank=2)
        run(tmp_path, callbacks=[watch]).fit(task, data)
        assert watch.history.keys() == {0, 2}
        return
    if case == 'probe':
        cache = str(tmp_path / 'cache')
        task = ExploraLinearProbeTask(2, blocks=[1], cache=cache, **VIT)
    else:
        task = ExploraClassificationTask(num_classes=2, rank=2, **VIT)
    trainer = run(tmp_path)
    trainer.fit(task, data)
    assert trainer.global_step == 2
    loader = DataLoader(data.train_dataset, 8, num_workers=1)
    assert case != 'probe' or read(loader) == 16
    assert case != 'probe' or len(pickle.dumps(data.train_dataset)) < 1000
