"""TorchGeo tasks."""

from torchgeo_explora.tasks.downstream.classification import ExploraClassificationTask
from torchgeo_explora.tasks.downstream.detection import ExploraDetectionTask
from torchgeo_explora.tasks.downstream.knn import ExploraKNNTask
from torchgeo_explora.tasks.downstream.probe import ExploraLinearProbeTask
from torchgeo_explora.tasks.downstream.segmentation import ExploraSegmentationTask
from torchgeo_explora.tasks.pretraining.base import PretrainingOptions, PretrainingTask
from torchgeo_explora.tasks.pretraining.dino import ExploraDinoTask
from torchgeo_explora.tasks.pretraining.mae import ExploraMAETask
from torchgeo_explora.tasks.run.adaptation import as_options, plain
from torchgeo_explora.tasks.run.optimizer import Schedule

__all__ = [
    'ExploraClassificationTask',
    'ExploraDetectionTask',
    'ExploraDinoTask',
    'ExploraKNNTask',
    'ExploraLinearProbeTask',
    'ExploraMAETask',
    'ExploraSegmentationTask',
    'PretrainingOptions',
    'PretrainingTask',
    'Schedule',
    'as_options',
    'plain',
]
