"""Pictures of reconstructions: what is shown, and when."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from torchgeo_explora.callbacks import Reconstructions
from torchgeo_explora.callbacks.figures import shown_channels
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT
from torchgeo_explora.objectives import MAE

SIZES = {'image_size': 32, 'patch_size': 8, 'depth': 1, 'num_heads': 2}
BANDS = ('B02', 'B03', 'B04', 'B8A')


class Module(torch.nn.Module):
    """What the callback asks of a task."""

    device = torch.device('cpu')

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        if kind == 'groups':
            groups = (('B02', 'B03', 'B04'), ('B8A',))
            student = GroupChannelViT(
                BANDS, groups, embed_dim=24, channel_embed_dim=8, **SIZES
            )
        elif kind == 'series':
            student = TemporalViT(embed_dim=24, time_embed_dim=12, **SIZES)
        else:
            student = ViT('vit_tiny_patch16_224', embed_dim=24, **SIZES)
        self.backbone = student
        self.objective = MAE(
            student, 24, 1, 2, decoder_channel_dim=8, decoder_time_dim=12
        )
        self.mean = (0.5,) * student.in_channels
        self.std = (0.25,) * student.in_channels

    def known_image(self, batch):
        return batch['image']

    def view(self, image):
        return (image - 0.5) / 0.25


class Run:
    """What the callback asks of a trainer."""

    is_global_zero = True
    global_step = 0

    def __init__(self, folder):
        self.default_root_dir = folder
        self.loggers = []


def batch(kind, images=4):
    shape = {'groups': (4,), 'series': (2, 3), 'plain': (3,)}[kind]
    given = {'image': torch.rand(images, *shape, 32, 32), 'path': ['a'] * images}
    if kind == 'series':
        given['timestamps'] = torch.tensor([[[13, 6, 7], [14, 0, 0]]] * images)
    return given


@pytest.mark.parametrize('kind', ['plain', 'groups', 'series'])
def test_picture_has_a_row_a_step_and_a_column_an_image(tmp_path, kind):
    callback, trainer, module = Reconstructions(images=3), Run(tmp_path), Module(kind)
    module.train()
    callback.on_train_batch_start(trainer, module, batch(kind), 0)
    trainer.global_step = 7
    callback.on_train_end(trainer, module)
    width, height = Image.open(tmp_path / 'reconstructions.png').size
    columns = 6 if kind == 'series' else 3
    assert (width, height) == (int((1.3 * columns + 0.6) * 120), 780)
    assert module.training


def test_mask_and_images_stay_the_same_and_the_generator_is_left_alone(tmp_path):
    callback, trainer, module = Reconstructions(), Run(tmp_path), Module('plain')
    torch.manual_seed(5)
    state = torch.get_rng_state()
    given = batch('plain')
    torch.set_rng_state(state)
    callback.on_train_batch_start(trainer, module, given, 0)
    callback.on_train_batch_start(trainer, module, batch('plain'), 1)
    torch.set_rng_state(state)
    hidden, first = callback._paint(module)
    assert torch.equal(torch.get_rng_state(), state)
    again, second = callback._paint(module)
    assert torch.equal(hidden, again)
    assert torch.equal(first, second)
    assert torch.equal(first, callback._first)
    assert torch.equal(callback._batch['image'], module.view(given['image']))


def test_picture_is_drawn_once_when_due(tmp_path, monkeypatch):
    callback = Reconstructions(every_n_steps=2)
    trainer, module = Run(tmp_path), Module('plain')
    drawn = []
    monkeypatch.setattr(
        'torchgeo_explora.callbacks.reconstructions.save_figure',
        lambda figure, name, trainer, folder: drawn.append(trainer.global_step),
    )
    callback.on_train_batch_start(trainer, module, batch('plain'), 0)
    for micro_step in range(10):
        trainer.global_step = micro_step // 2
        callback.on_train_batch_end(trainer, module, None, None, micro_step)
    callback.on_train_end(trainer, module)
    assert drawn == [2, 4]


def test_picture_survives_a_checkpoint(tmp_path):
    callback, trainer, module = Reconstructions(), Run(tmp_path), Module('series')
    callback.on_train_batch_start(trainer, module, batch('series'), 0)
    resumed = Reconstructions()
    resumed.load_state_dict(callback.state_dict())
    trainer.global_step = 3
    resumed.on_train_end(trainer, module)
    assert (tmp_path / 'reconstructions.png').exists()


@pytest.mark.parametrize(
    ('bands', 'expected'),
    [(None, [2, 1, 0]), (['B8A', 'B4', 0], [3, 2, 0]), ([3, 3, 3], [3, 3, 3])],
)
def test_bands_are_names_or_indices(bands, expected):
    backbone = Module('groups').backbone
    assert shown_channels(backbone, bands) == expected


def test_a_single_channel_is_shown_in_grey():
    assert shown_channels(SimpleNamespace(in_channels=1), None) == [0, 0, 0]


def test_pixels_without_data_do_not_spoil_the_picture(tmp_path):
    callback, trainer, module = Reconstructions(), Run(tmp_path), Module('plain')
    given = batch('plain')
    given['image'][0, :, :5] = torch.nan
    callback.on_train_batch_start(trainer, module, given, 0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        trainer.global_step = 1
        callback.on_train_end(trainer, module)
    assert (tmp_path / 'reconstructions.png').exists()


def test_bands_without_names_are_indices():
    backbone = Module('plain').backbone
    assert shown_channels(backbone, None) == [0, 1, 2]
    with pytest.raises(ValueError, match='ViT has no names for its channels'):
        shown_channels(backbone, ['red', 1, 2])
    with pytest.raises(ValueError, match='B11, which the images do not have'):
        shown_channels(Module('groups').backbone, ['B11', 1, 2])
    with pytest.raises(ValueError, match='three of the 3 channels'):
        shown_channels(backbone, [3, 2, 1])
