"""Self-supervised objectives."""

from torchgeo_explora.objectives.dinov2 import DINOv2, DINOv2Options, HeadOptions
from torchgeo_explora.objectives.mae import MAE, MAEOptions
from torchgeo_explora.objectives.objective import Objective
from torchgeo_explora.objectives.terms.guides import Guide

__all__ = [
    'MAE',
    'DINOv2',
    'DINOv2Options',
    'Guide',
    'HeadOptions',
    'MAEOptions',
    'Objective',
]
