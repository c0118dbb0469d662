"""TorchGeo tasks."""

from torchgeo_explora.tasks.downstream.classification import ExploraClassificationTask
from torchgeo_explora.tasks.downstream.detection import ExploraDetectionTask
from torchgeo_explora.tasks.downstream.knn import ExploraKNNTask
from torchgeo_explora.tasks.downstream.probe import ExploraLinearProbeTask
from torchgeo_explora.tasks.downstream.segmentation import ExploraSegmentationTask
from torchgeo_explora.tasks.pretraining.base import PretrainingTask
from torchgeo_explora.tasks.pretraining.dino import ExploraDinoTask
from torchgeo_explora.tasks.pretraining.mae import ExploraMAETask

__all__ = [
    'ExploraClassificationTask',
    'ExploraDetectionTask',
    'ExploraDinoTask',
    'ExploraKNNTask',
    'ExploraLinearProbeTask',
    'ExploraMAETask',
    'ExploraSegmentationTask',
    'PretrainingTask',
]
