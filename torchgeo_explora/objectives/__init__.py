"""Self-supervised objectives."""

from torchgeo_explora.objectives.dinov2 import DINOv2, DINOv2Options
from torchgeo_explora.objectives.mae import MAE, MAEOptions
from torchgeo_explora.objectives.objective import Objective

__all__ = ['MAE', 'DINOv2', 'DINOv2Options', 'MAEOptions', 'Objective']
