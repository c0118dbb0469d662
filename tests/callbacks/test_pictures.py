"""Pictures and curves: the files, and what the colours mean."""

import pytest
import torch
from PIL import Image

from torchgeo_explora.augment import SingleCrop
from torchgeo_explora.callbacks import Curves, OnlineKNN, Pictures
from torchgeo_explora.models import TemporalViT


class Pixels(torch.nn.Module):
    """A backbone whose patch features are the patches' mean colours."""

    patch_size = 4
    in_channels = 3

    def forward(self, image, **metadata):
        from torchgeo_explora.models import Features

        # Wider than three, as every ViT is.
        patches = torch.nn.functional.avg_pool2d(image, 4).repeat(1, 3, 1, 1)
        return Features(image.mean((2, 3)), patches.flatten(2).transpose(1, 2))


class Module:
    """What the callbacks ask of a task."""

    device = torch.device('cpu')
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self):
        self.backbone = Pixels()
        self.objective = torch.nn.Module()

    def view(self, image):
        return image

    def unit_image(self, batch):
        return batch['image']


class Run:
    """What the callbacks ask of a trainer."""

    is_global_zero = True
    global_step = 0
    global_rank = 0

    def __init__(self, folder, callbacks=()):
        self.default_root_dir = folder
        self.loggers = []
        self.callbacks = list(callbacks)
        self.logged_metrics = {}
        self.callback_metrics = {}


@pytest.mark.parametrize('channels', [1, 2, 3, 13])
def test_pca_picture_is_written_for_any_bands(tmp_path, channels):
    callback, trainer, module = Pictures(), Run(tmp_path), Module()
    module.backbone.in_channels = channels
    batch = {'image': torch.rand(8, channels, 16, 16)}
    callback.on_train_batch_start(trainer, module, batch, 0)
    callback.on_train_end(trainer, module)
    width, height = Image.open(tmp_path / 'pca.png').size
    assert width > height > 100


def test_a_series_is_shown_by_its_first_image(tmp_path):
    callback, trainer, module = Pictures(), Run(tmp_path), Module()
    module.backbone = TemporalViT(32, 8, 24, 1, 2, time_embed_dim=12)
    module.objective.augment = SingleCrop(32)
    module.mean = module.std = (0.5, 0.5, 0.5)
    times = torch.tensor([[[13, 6, 7], [14, 0, 0]]] * 8)
    batch = {'image': torch.rand(8, 2, 3, 32, 32), 'timestamps': times}
    callback.on_train_batch_start(trainer, module, batch, 0)
    callback.on_train_end(trainer, module)
    assert (tmp_path / 'crops.png').exists()
    assert (tmp_path / 'pca.png').exists()


def test_like_patches_get_like_colours():
    image = torch.zeros(2, 3, 8, 8)
    image[0, 0, :4] = 1
    image[1, 1, :, :4] = 1
    colours = Pictures()._components(Module(), {'image': image})
    assert colours.shape == (2, 3, 2, 2)
    assert torch.allclose(colours[0, :, 0, 0], colours[0, :, 0, 1])
    assert torch.allclose(colours[0, :, 1, 0], colours[1, :, 0, 1])
    assert (colours[0, :, 0, 0] - colours[1, :, 0, 0]).abs().max() > 0.5


def test_pictures_survive_a_checkpoint(tmp_path):
    callback, trainer, module = Pictures(images=2), Run(tmp_path), Module()
    batch = {'image': torch.rand(4, 3, 16, 16)}
    callback.on_train_batch_start(trainer, module, batch, 0)
    resumed = Pictures(images=2)
    resumed.load_state_dict(callback.state_dict())
    resumed.on_train_end(trainer, module)
    assert (tmp_path / 'pca.png').exists()


def test_curves_take_each_step_once(tmp_path):
    curves = Curves(metrics=('loss', 'never'))
    trainer = Run(tmp_path)
    for step in range(1, 4):
        trainer.global_step = step
        trainer.logged_metrics = {'loss': torch.tensor(1.0 / step)}
        curves.on_train_batch_end(trainer, None, None, None, 0)
    curves.on_train_end(trainer, None)
    assert curves.points['loss'] == pytest.approx({1: 1.0, 2: 0.5, 3: 1 / 3})
    assert Image.open(tmp_path / 'curves.png').size[0] > 100
    again = Curves(metrics=('loss', 'never'))
    again.load_state_dict(curves.state_dict())
    assert again.points == curves.points


@pytest.fixture
def drawn(monkeypatch):
    """The figures of curves that are drawn, instead of files."""
    figures = []
    monkeypatch.setattr(
        'torchgeo_explora.callbacks.curves.save_figure',
        lambda figure, *rest: figures.append(figure),
    )
    return figures


def panels_of(figure):
    """Return the points (steps, values) of each panel by its title."""
    lines = {axes.get_title(): axes.get_lines()[0] for axes in figure.axes}
    return {
        title: (list(line.get_xdata()), list(line.get_ydata()))
        for title, line in lines.items()
    }


def test_curve_of_knn_has_the_evaluations_and_nothing_in_between(drawn, tmp_path):
    knn, curves = OnlineKNN(), Curves(metrics=('knn', 'loss'))
    knn.history = {0: 0.25, 2: 0.75, 4: 0.5}
    trainer = Run(tmp_path, [knn, curves])
    for step in range(1, 5):
        trainer.global_step = step
        # The accuracy of step 2 stays logged in step 3.
        trainer.callback_metrics = {'knn': torch.tensor(knn.history.get(step, 0.75))}
        trainer.logged_metrics = {'loss': torch.tensor(1.0 / step)}
        curves.on_train_batch_end(trainer, None, None, None, 0)
    curves.on_train_end(trainer, None)
    panels = panels_of(drawn[0])
    assert panels['knn'] == ([0, 2, 4], [0.25, 0.75, 0.5])
    assert panels['loss'] == ([1, 2, 3, 4], pytest.approx([1, 1 / 2, 1 / 3, 1 / 4]))


@pytest.mark.parametrize('history', [{}, {0: 0.5}])
def test_no_curve_of_knn_without_evaluations_or_without_being_asked(
    drawn, tmp_path, history
):
    knn = OnlineKNN()
    knn.history = history
    curves = Curves(metrics=('loss',) if history else ('knn', 'loss'))
    curves.points['loss'] = {1: 1.0}
    curves.on_train_end(Run(tmp_path, [knn, curves]), None)
    assert panels_of(drawn[0]) == {'loss': ([1], [1.0])}
