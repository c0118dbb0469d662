"""Online kNN: what it measures, when, and when it is off."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from torchgeo_explora.callbacks import OnlineKNN


class Points(Dataset):
    """Images whose mean tells their class, if they have one."""

    def __init__(self, size, labelled=True):
        self.size, self.labelled = size, labelled

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        label = index * 2 // self.size
        sample = {'image': torch.full((3, 4, 4), float(label)) + index / 1000}
        return sample | ({'label': torch.tensor(label)} if self.labelled else {})


class Same(Dataset):
    """One sample, again and again."""

    def __init__(self, sample):
        self.sample = sample

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.sample


class Data(LightningDataModule):
    num_workers = 0
    collate_fn = staticmethod(default_collate)

    def __init__(self, labelled=True):
        super().__init__()
        self.train_dataset = Points(40, labelled)
        self.val_dataset = Points(12, labelled)

    def train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=4)


class Model(LightningModule):
    """Embeds by the mean colour; at the fourth step it forgets everything."""

    planned_steps = 6

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def embed(self, batch):
        mean = batch['image'].mean((1, 2, 3))
        if self.global_step >= 4:
            return torch.ones(len(mean), 2)
        return torch.stack([mean.cos(), mean.sin()], 1)

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(tmp_path, callback, data, *others):
    trainer = Trainer(
        accelerator='cpu',
        max_steps=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(others),
        callbacks=[callback, *others],
        default_root_dir=tmp_path,
    )
    trainer.fit(Model(), datamodule=data)


def test_history_has_the_start_the_interval_and_the_end(tmp_path):
    callback = OnlineKNN(every_n_steps=2, k=3)
    with pytest.warns(UserWarning, match='fell from 1.000 to 0.500'):
        _fit(tmp_path, callback, Data())
    assert list(callback.history) == [0, 2, 4, 6]
    assert callback.history[0] == callback.history[2] == 1.0
    assert callback.history[6] == 0.5


def test_best_checkpoint_follows_knn(tmp_path):
    checkpoint = ModelCheckpoint(
        tmp_path, monitor='knn', mode='max', every_n_train_steps=2, filename='{step}'
    )
    with pytest.warns(UserWarning, match='fell'):
        _fit(tmp_path, OnlineKNN(every_n_steps=2), Data(), checkpoint)
    assert checkpoint.best_model_path.endswith('step=2.ckpt')


def test_no_labels_turns_it_off_and_says_so(tmp_path, caplog):
    caplog.set_level('INFO')
    callback = OnlineKNN()
    _fit(tmp_path, callback, Data(labelled=False))
    assert not callback.history
    assert 'online kNN is off: the train split has no class labels' in caplog.text


@pytest.mark.parametrize(
    'label', [None, 'field', 0.5, -1, True, torch.tensor([0, 1]), torch.tensor(0.5)]
)
def test_labels_other_than_numbers_of_classes_turn_it_off(tmp_path, caplog, label):
    caplog.set_level('INFO')
    data = Data(labelled=False)
    given = {'image': torch.zeros(3, 4, 4)} | (
        {} if label is None else {'label': label}
    )
    data.val_dataset = Same(given)
    data.train_dataset = Points(40)
    callback = OnlineKNN()
    _fit(tmp_path, callback, data)
    assert not callback.history
    assert 'the val split has no class labels' in caplog.text


def test_a_data_set_that_cannot_be_read_by_number_turns_it_off(tmp_path, caplog):
    class Places(Points):
        def __getitem__(self, place):
            if place == 0:
                raise RuntimeError('no such place')
            return super().__getitem__(place)

    caplog.set_level('INFO')
    data, callback = Data(), OnlineKNN()
    data.val_dataset = Places(12)
    _fit(tmp_path, callback, data)
    assert (
        'the val split cannot be read by number (RuntimeError: no such' in caplog.text
    )


def test_a_data_set_without_a_length_turns_it_off(tmp_path, caplog):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([Points(40)[number] for number in range(40)])

    caplog.set_level('INFO')
    data = Data()
    data.train_dataset = Stream()
    callback = OnlineKNN()
    _fit(tmp_path, callback, data)
    assert not callback.history
    assert 'the train split can only be iterated over' in caplog.text


def test_no_interval_turns_it_off(tmp_path, caplog):
    caplog.set_level('INFO')
    callback = OnlineKNN(every_n_steps=0)
    _fit(tmp_path, callback, Data())
    assert not callback.history
    assert 'online kNN is off: *every_n_steps* is 0' in caplog.text


def test_a_data_module_needs_no_settings_of_its_own(tmp_path):
    class Bare(LightningDataModule):
        def __init__(self):
            super().__init__()
            self.train_dataset, self.val_dataset = Points(40), Points(12)

        def train_dataloader(self):
            return DataLoader(self.train_dataset, batch_size=4)

    callback = OnlineKNN(every_n_steps=100, tolerance=1)
    _fit(tmp_path, callback, Bare())
    assert callback.history[0] == 1.0


def test_early_stopping_finds_knn_in_every_epoch(tmp_path):
    """10 batches an epoch, kNN every 4 steps or only at the end of an epoch."""
    for every in (4, 100):
        callback = OnlineKNN(every_n_steps=every)
        stop = EarlyStopping(
            'knn', mode='max', patience=1, check_on_train_epoch_end=True
        )
        callback.tolerance = 1
        trainer = Trainer(
            accelerator='cpu',
            max_epochs=9,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[stop, callback],
            default_root_dir=tmp_path,
        )
        trainer.fit(Model(), datamodule=Data())
        # The second epoch is no better than the first.
        assert trainer.global_step == 20
        # 6 is the last step that the model planned.
        expected = [0, 6, 20] if every == 100 else [0, 4, 6, 8, 12, 16, 20]
        assert [*callback.history] == expected


def test_early_stopping_without_labels_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match='no class labels; set'):
        _fit(tmp_path, OnlineKNN(), Data(labelled=False), EarlyStopping('knn'))


def test_large_splits_are_thinned_evenly(tmp_path):
    callback = OnlineKNN(every_n_steps=100, bank=4, queries=6, k=10)
    callback.tolerance = 1
    _fit(tmp_path, callback, Data())
    assert callback.history[0] == 1.0


def test_history_survives_a_checkpoint():
    callback, other = OnlineKNN(), OnlineKNN()
    callback.history = {0: 0.5, 500: 0.75}
    other.load_state_dict(callback.state_dict())
    assert other.history == callback.history
