"""TorchGeo tasks."""

from torchgeo_explora.tasks.dino import ExploraDinoTask
from torchgeo_explora.tasks.mae import ExploraMAETask
from torchgeo_explora.tasks.pretraining import PretrainingTask

__all__ = ['ExploraDinoTask', 'ExploraMAETask', 'PretrainingTask']
