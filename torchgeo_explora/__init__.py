"""Adapt a Vision Transformer to your own imagery, without labels, in TorchGeo."""

import sys
from importlib import import_module
from typing import Any

from torchgeo_explora.version import __version__

# Public names load on first use (PEP 562), so that importing the package is cheap.
_HOMES = {
    'Adaptation': 'torchgeo_explora.adapt',
    'ExploraClassificationTask': 'torchgeo_explora.tasks',
    'ExploraDetectionTask': 'torchgeo_explora.tasks',
    'ExploraDinoTask': 'torchgeo_explora.tasks',
    'ExploraKNNTask': 'torchgeo_explora.tasks',
    'ExploraLinearProbeTask': 'torchgeo_explora.tasks',
    'ExploraMAETask': 'torchgeo_explora.tasks',
    'ExploraSegmentationTask': 'torchgeo_explora.tasks',
    'ExploraWeights': 'torchgeo_explora.models.zoo.weights',
    'ImageFolderDataModule': 'torchgeo_explora.datamodules',
    'ViT': 'torchgeo_explora.models',
    'load_delta': 'torchgeo_explora.adapt',
    'merged': 'torchgeo_explora.adapt',
    'save_delta': 'torchgeo_explora.adapt',
}

__all__ = ['__version__', 'register', *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)


def register() -> None:
    """Register this package's models and weights with TorchGeo and timm, by name.

    If TorchGeo or timm has already been imported, importing this package is enough.
    This is the case when a configuration of TorchGeo's command names a class of this
    package. Importing `torchgeo_explora.models` also registers the models with timm,
    and importing `ExploraWeights` registers models and weights with both.
    """
    import_module('torchgeo_explora.models.zoo.weights')


if 'timm' in sys.modules:
    import_module('torchgeo_explora.models')
if 'torchgeo.models' in sys.modules:
    register()
