"""What a run costs."""

from torchgeo_explora.callbacks.cost.callback import Cost, cost_line, read_cost
from torchgeo_explora.callbacks.cost.operations import image_operations, vit_operations

__all__ = ['Cost', 'cost_line', 'image_operations', 'read_cost', 'vit_operations']
