"""Self-supervised objectives."""

from torchgeo_explora.objectives.dinov2 import DINOv2
from torchgeo_explora.objectives.mae import MAE
from torchgeo_explora.objectives.objective import Objective

__all__ = ['MAE', 'DINOv2', 'Objective']
