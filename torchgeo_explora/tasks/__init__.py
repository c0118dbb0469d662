"""TorchGeo tasks."""

from torchgeo_explora.tasks.classification import ExploraClassificationTask
from torchgeo_explora.tasks.detection import ExploraDetectionTask
from torchgeo_explora.tasks.dino import ExploraDinoTask
from torchgeo_explora.tasks.knn import ExploraKNNTask
from torchgeo_explora.tasks.mae import ExploraMAETask
from torchgeo_explora.tasks.pretraining import PretrainingTask
from torchgeo_explora.tasks.probe import ExploraLinearProbeTask
from torchgeo_explora.tasks.segmentation import ExploraSegmentationTask

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
