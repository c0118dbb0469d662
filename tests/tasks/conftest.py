"""A folder of small images, and a task small enough to train in seconds."""

import numpy as np
import pytest
from PIL import Image

from torchgeo_explora.callbacks import (
    Curves,
    EmbeddingPictures,
    LabelFreeQuality,
    Pictures,
    Reconstructions,
    pretraining_callbacks,
)

TINY = {
    'model': 'vit_tiny_patch16_224',
    'weights': None,
    'image_size': 32,
    'views': {
        'local_size': 16,
        'local_views': 2,
    },
    'model_args': {'patch_size': 8, 'embed_dim': 24, 'depth': 3, 'num_heads': 2},
    # Few steps of the paper's settings: what tests compare with.
    'recipe': 'paper',
    'rank': 4,
    'objective': {
        'prototypes': 32,
        'hidden_dim': 16,
        'bottleneck_dim': 8,
    },
    # Large: a short run must move the weights.
    'base_lr': 0.05,
}


@pytest.fixture(autouse=True)
def no_default_pictures(monkeypatch):
    """Leave out the pictures and measures that a task makes of its own accord.

    They take most of the time of a short run. Those that a test asks for are drawn, and
    the tests of callbacks look at the defaults.
    """

    def few(*arguments):
        drawing = (
            *(Curves, EmbeddingPictures, LabelFreeQuality, Pictures),
            Reconstructions,
        )
        found = pretraining_callbacks(*arguments)
        return [callback for callback in found if not isinstance(callback, drawing)]

    base = 'torchgeo_explora.tasks.pretraining.base'
    monkeypatch.setattr(f'{base}.pretraining_callbacks', few)


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """Two classes, 16 training and 4 validation images of 40 x 40 pixels each."""
    root = tmp_path_factory.mktemp('images')
    random = np.random.default_rng(0)
    for split, count in (('train', 16), ('val', 4), ('predict', 5)):
        for label, name in enumerate(('field', 'water')):
            place = root / split / name
            place.mkdir(parents=True)
            for index in range(count):
                image = random.integers(0, 128, (40, 40, 3)) + 100 * label
                Image.fromarray(image.astype(np.uint8)).save(place / f'{index}.png')
    return root


@pytest.fixture
def tiny():
    """Arguments of a small task."""
    return dict(TINY)
