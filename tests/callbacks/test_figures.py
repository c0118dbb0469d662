"""Where figures go: a file, and the loggers that take figures."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import (
    CSVLogger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from matplotlib.figure import Figure
from PIL import Image

from torchgeo_explora.callbacks.figures import contrast, save_figure, stretched


class Calls(SimpleNamespace):
    """Remembers what is called on it, by name."""

    def __init__(self):
        super().__init__(calls=[])

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


class Wandb(WandbLogger):
    """Without its package: only images are logged."""

    def __init__(self):
        self.images = []

    @property
    def experiment(self):
        raise AssertionError('no run has to be started for an image')

    def log_image(self, key, images, step=None, **kwargs):
        self.images.append((key, [Image.open(file).size for file in images], step))


class MLFlow(MLFlowLogger):
    """Without its package: a client that remembers."""

    def __init__(self):
        self.client = Calls()

    @property
    def experiment(self):
        return self.client

    @property
    def run_id(self):
        return 'run'


class TensorBoard(TensorBoardLogger):
    """A writer that remembers."""

    def __init__(self):
        self.writer = Calls()

    @property
    def experiment(self):
        return self.writer


@pytest.fixture
def figure():
    return Figure(figsize=(2, 1))


def trainer(folder, *loggers):
    """Return what is asked of a trainer."""
    return SimpleNamespace(
        default_root_dir=str(folder), loggers=list(loggers), global_step=30
    )


def test_figure_is_a_file_in_the_root_folder_or_in_another(figure, tmp_path):
    save_figure(figure, 'curves', trainer(tmp_path))
    save_figure(figure, 'curves', trainer(tmp_path), tmp_path / 'other')
    for path in (tmp_path / 'curves.png', tmp_path / 'other' / 'curves.png'):
        assert Image.open(path).size == (240, 120)


def test_tensorboard_gets_the_figure_at_its_step(figure, tmp_path):
    logger = TensorBoard()
    save_figure(figure, 'curves', trainer(tmp_path, logger))
    call = ('add_figure', ('curves', figure), {'global_step': 30})
    assert logger.writer.calls == [call]


def test_weights_and_biases_gets_the_image(figure, tmp_path):
    logger = Wandb()
    save_figure(figure, 'curves', trainer(tmp_path, logger))
    assert logger.images == [('curves', [(240, 120)], 30)]


def test_mlflow_keeps_the_figure_of_each_step(figure, tmp_path):
    logger = MLFlow()
    save_figure(figure, 'curves', trainer(tmp_path, logger))
    call = ('log_figure', ('run', figure, 'curves/0000030.png'), {})
    assert logger.client.calls == [call]


def test_a_csv_file_takes_no_figure(figure, tmp_path):
    save_figure(figure, 'curves', trainer(tmp_path, CSVLogger(tmp_path)))
    assert (tmp_path / 'curves.png').exists()


def test_contrast_keeps_colours_and_leaves_out_missing_data():
    images = torch.linspace(0.02, 0.12, 101)[:, None].repeat(1, 4)
    images[0, 0] = torch.nan
    low, high = contrast(images)
    assert low == pytest.approx(0.022, abs=1e-3)
    assert high == pytest.approx(0.118, abs=1e-3)
    shown = stretched(images, (low, high))
    assert shown[50, 1] == pytest.approx(0.5, abs=0.01)
    assert (shown[0, 0], shown.min(), shown.max()) == (0, 0, 1)
    assert contrast(torch.full((2, 2), torch.nan)) == (0, 1)
    low, high = contrast(torch.ones(3))
    assert low < high
