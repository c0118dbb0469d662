"""What TorchGeo and timm are told about this package."""

import warnings
from functools import partial


def register_with_timm() -> None:
    """Make `timm.create_model` know our architectures."""
    # Imports models, and with them timm: not before it is there.
    from torchgeo_explora.models.zoo import register

    register()


def register_with_torchgeo() -> None:
    """Make `torchgeo.models` know our architectures and `ExploraWeights`.

    TorchGeo has no public way to register, and means to replace its registry by timm's:
    where its dictionaries are gone, a warning says what still works.
    """
    from torchgeo.models import api

    from torchgeo_explora.models.weights import ExploraWeights
    from torchgeo_explora.models.zoo import default_cfgs, with_weights

    try:
        models, weights = api._model, api._model_weights
    except AttributeError:
        warnings.warn(
            'this version of TorchGeo has no registry that torchgeo_explora knows: its'
            ' models are found by timm.create_model, and its weights as'
            ' torchgeo_explora.ExploraWeights, but not by their names in strings',
            stacklevel=2,
        )
        return
    for name in default_cfgs:
        builder = partial(with_weights, name)
        models[name] = builder
        weights[name] = weights[builder] = ExploraWeights
