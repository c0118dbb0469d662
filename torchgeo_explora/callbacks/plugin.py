"""A callback that does nothing but be named in a configuration."""

from lightning.pytorch import Callback


class Plugin(Callback):
    """Make a stock configuration of TorchGeo know this package.

    TorchGeo's command imports what a configuration names by a full path. With

        trainer:
          callbacks: [{class_path: torchgeo_explora.callbacks.Plugin}]

    the models here, and weights such as `ExploraWeights.FMOW_RGB`, are known by name
    to TorchGeo's own tasks.
    """
