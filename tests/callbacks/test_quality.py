"""Quality without labels: what it measures, when, and when it is off."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, Dataset

from torchgeo_explora.callbacks import LabelFreeQuality
from torchgeo_explora.callbacks.quality import measures, place_views
from torchgeo_explora.functional import alignment, lidar, rankme
from torchgeo_explora.models.backbones.tokens import Features

pytestmark = pytest.mark.filterwarnings('ignore')


class Images(Dataset):
    """Images of random colours, which their crops share."""

    def __init__(self, size):
        generator = torch.Generator().manual_seed(0)
        colours = torch.rand(size, 3, 1, 1, generator=generator)
        noise = torch.rand(size, 3, 10, 10, generator=generator)
        self.images = colours + 0.1 * noise

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {'image': self.images[index]}


class Data(LightningDataModule):
    def __init__(self, size=24):
        super().__init__()
        self.train_dataset = Images(size)

    def train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=4)


class Model(LightningModule):
    """Embeds by mean colours; at the third step all images become alike."""

    planned_steps = 5

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        return self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], 0.1)

    def embed(self, batch):
        self.seen.append(tuple(batch['image'].shape[-2:]))
        colours = batch['image'].mean((2, 3))
        if self.trainer.global_step >= 3:
            return colours * torch.tensor([1.0, 0, 0])
        return colours


def fit(place, quality, data=None, ckpt_path=None, model=None, **arguments):
    trainer = Trainer(
        **{
            'accelerator': 'cpu',
            'max_steps': 5,
            'logger': False,
            'enable_checkpointing': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'default_root_dir': place,
            'callbacks': [quality],
            **arguments,
        }
    )
    model = model or Model()
    trainer.fit(model, data or Data(), ckpt_path=ckpt_path)
    return trainer, model


def test_it_measures_the_start_every_n_steps_and_the_end(tmp_path):
    quality = LabelFreeQuality(every_n_steps=2, images=12, batch_size=8)
    trainer, model = fit(tmp_path, quality)
    assert list(quality.history) == [0, 2, 4, 5]
    names = {f'quality/{name}' for name in quality.history[0]}
    assert names <= set(trainer.callback_metrics)
    # 12 of 24 images, as they are and as five crops, in batches of 8.
    assert model.seen[:6] == [(10, 10)] + [(7, 7)] * 5
    assert len(model.seen) == 4 * 2 * 6


def test_a_collapse_is_warned_of_with_its_evidence(tmp_path):
    quality = LabelFreeQuality(every_n_steps=2)
    with pytest.warns(UserWarning, match=r'effective rank .* fell from .* to 1\.0'):
        fit(tmp_path, quality)


def test_before_and_after_are_printed(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'torchgeo_explora.callbacks.quality.rank_zero_info', lines.append
    )
    quality = LabelFreeQuality(every_n_steps=5)
    fit(tmp_path, quality)
    assert lines[-1].startswith('quality without labels, before and after: rankme ')
    assert f'{quality.history[0]["rankme"]:.4g}' in lines[-1]


def test_views_are_the_corners_and_the_centre():
    image = torch.arange(100.0).reshape(1, 1, 10, 10)
    views = place_views(image)
    firsts = [view[0, 0, 0, 0].item() for view in views]
    assert firsts == [0, 3, 33, 30, 11]
    assert {view.shape for view in views} == {(1, 1, 7, 7)}


def test_measures_are_those_of_their_functions():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(20, 6, generator=generator)
    crops = whole[:, None] + 0.1 * torch.randn(20, 5, 6, generator=generator)
    found = measures(whole, crops)
    assert found['rankme'] == rankme(whole).item()
    assert found['lidar'] == lidar(crops).item()
    # Opposite corners: the first and the third view.
    assert found['alignment'] == alignment(crops[:, 0], crops[:, 2]).item()
    assert found['retrieval'] == 1


def test_it_is_off_without_images_and_says_why(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'torchgeo_explora.callbacks.evaluation.rank_zero_info', lines.append
    )
    quality = LabelFreeQuality()
    fit(tmp_path, quality, Data(size=1))
    assert quality.history == {}
    assert lines == ['quality without labels is off: there is only one training image']
    fit(tmp_path, LabelFreeQuality(every_n_steps=0))
    assert lines[-1] == 'quality without labels is off: *every_n_steps* is 0'


def test_the_history_survives_a_checkpoint():
    quality = LabelFreeQuality()
    quality.history = {3: {'rankme': 2.5}}
    other = LabelFreeQuality()
    other.load_state_dict(quality.state_dict())
    assert other.history == quality.history


class Tokens(Model):
    """A task that gives tokens: four per image, of one direction or of many."""

    pooling = 'mean'

    def embed_tokens(self, batch):
        patch = batch['image'].flatten(2).mT[:, :4]
        return Features(patch[:, 0], patch)


def test_patch_rank_is_that_of_the_tokens_of_an_image(tmp_path):
    """Of the pass that embeds the images: no image is seen once more."""
    quality = LabelFreeQuality(every_n_steps=5, images=24)
    _, model = fit(tmp_path, quality, model=Tokens(), max_steps=1)
    images = Images(24).images.flatten(2).mT[:, :4]
    expected = sum(rankme(image).item() for image in images) / 24
    assert quality.history[0]['patch_rank'] == pytest.approx(expected)
    assert expected < rankme(torch.eye(4)[:, :3]) - 1
    # Only the crops, in five views, go through `embed`.
    assert set(model.seen) == {(7, 7)}


def test_all_processes_have_the_values_of_the_first(tmp_path, monkeypatch):
    """Else they could disagree on when to stop."""

    def broadcast(self, value, src=0):
        return {**value, 'rankme': 42.0} if isinstance(value, dict) else value

    monkeypatch.setattr(SingleDeviceStrategy, 'broadcast', broadcast)
    quality = LabelFreeQuality(every_n_steps=5)
    fit(tmp_path, quality)
    assert [each['rankme'] for each in quality.history.values()] == [42, 42]


def test_early_stopping_finds_every_measure_in_every_epoch(tmp_path):
    """6 batches an epoch, fewer than between two measurements."""
    quality = LabelFreeQuality(every_n_steps=100)
    stop = EarlyStopping('quality/retrieval', mode='max', patience=1)
    trainer = Trainer(
        accelerator='cpu',
        max_epochs=9,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[stop, quality],
    )
    trainer.fit(Model(), Data())
    # 5 is the last step that the model planned.
    assert [*quality.history] == [0, 5, 12]
    assert set(quality.monitors) >= {f'quality/{n}' for n in quality.history[0]}


def test_early_stopping_without_images_is_refused_at_the_start(tmp_path):
    quality = LabelFreeQuality()
    stop = EarlyStopping('quality/rankme', mode='max')
    with pytest.raises(ValueError, match='watches quality/rankme, but quality without'):
        Trainer(
            accelerator='cpu',
            max_steps=5,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[stop, quality],
        ).fit(Model(), Data(1))


def test_a_callback_that_served_another_run_starts_anew(tmp_path):
    quality = LabelFreeQuality(every_n_steps=2)
    fit(tmp_path, quality)
    first = dict(quality.history)
    trainer, _ = fit(tmp_path, quality)
    assert [*quality.history] == [*first]
    assert 'quality/rankme' in trainer.callback_metrics


def test_a_run_resumed_between_two_measurements_has_no_second_start(tmp_path):
    first = LabelFreeQuality(every_n_steps=4)
    trainer, _ = fit(tmp_path, first, max_steps=1)
    trainer.save_checkpoint(tmp_path / 'one.ckpt')
    second = LabelFreeQuality(every_n_steps=4)
    fit(tmp_path, second, ckpt_path=tmp_path / 'one.ckpt')
    assert [*second.history] == [0, 4, 5]
    assert second.history[0] == first.history[0]


def test_a_checkpoint_follows_a_measure(tmp_path):
    """With the settings that the page of the documentation gives."""
    quality = LabelFreeQuality(every_n_steps=2)
    best = ModelCheckpoint(
        tmp_path,
        'best-neighbours',
        'quality/retrieval',
        mode='max',
        every_n_train_steps=2,
    )
    Trainer(
        accelerator='cpu',
        max_steps=5,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[best, quality],
    ).fit(Model(), Data())
    assert best.best_model_path == str(tmp_path / 'best-neighbours.ckpt')
    # Of the fourth step on, all images are alike.
    assert best.best_model_score == quality.history[2]['retrieval']
    assert quality.history[2]['retrieval'] > quality.history[4]['retrieval']


def test_the_page_names_every_measure():
    page = Path(__file__).parents[2] / 'docs' / 'quality.md'
    rows = page.read_text(encoding='utf-8')
    assert all(f'| `{name}` |' in rows for name in LabelFreeQuality.monitors)
