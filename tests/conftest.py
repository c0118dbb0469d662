"""Fixtures shared by all tests."""

import importlib.util
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parent / 'golden'
DATA = Path(__file__).parent / 'data'


@pytest.fixture(scope='session')
def golden() -> Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]:
    """Read the reference numbers of one topic: (tensors, config).

    Those that are too large for the repository come from the folder EXPLORA_GOLDEN.
    """

    def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = GOLDEN / f'{name}.safetensors'
        if not path.exists():
            path = Path(os.environ.get('EXPLORA_GOLDEN', '')) / path.name
        if not path.exists():
            pytest.skip(f'{path.name} is too large for the repository')
        with safe_open(path, 'pt') as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            config = json.loads((file.metadata() or {}).get('config', '{}'))
        # Half precision is only compact storage: the values are exact in float32.
        return {
            key: value.float() if value.dtype == torch.float16 else value
            for key, value in tensors.items()
        }, config

    return read


@pytest.fixture(scope='session')
def fake() -> Callable[[str], ModuleType]:
    """Import a generator of fake data by the name of its file."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(
            f'fake_{name}', DATA / f'{name}.py'
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def tiny_backbone():
    """Return a ViT of depth 3 and width 24 over 32 x 32 images, patch 8."""
    from torchgeo_explora.models import ViT

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViT(
            'vit_tiny_patch16_224',
            image_size=32,
            patch_size=8,
            embed_dim=24,
            depth=3,
            num_heads=2,
        )


@pytest.fixture(scope='session')
def tiny_images(tmp_path_factory):
    """A folder of two classes, 8 training and 2 validation images of 40 x 40 pixels."""
    root = tmp_path_factory.mktemp('tiny_images')
    random = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 2)):
        for label, name in enumerate(('field', 'water')):
            place = root / split / name
            place.mkdir(parents=True)
            for index in range(count):
                image = random.integers(0, 128, (40, 40, 3)) + 100 * label
                Image.fromarray(image.astype(np.uint8)).save(place / f'{index}.png')
    return root


@pytest.fixture(autouse=True)
def _caplog_sees_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pass on what Lightning logs.

    It keeps its messages to itself where it is imported before pytest listens.
    """
    monkeypatch.setattr(logging.getLogger('lightning.pytorch'), 'propagate', True)
