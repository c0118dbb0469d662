"""Export of backbones, with their delta merged, to other libraries; embeddings."""

from torchgeo_explora.export.hub import from_hub, push_to_hub
from torchgeo_explora.export.imagery.embeddings import embed
from torchgeo_explora.export.imagery.maps import map_scenes
from torchgeo_explora.export.imagery.search import search
from torchgeo_explora.export.onnx_file import export_onnx
from torchgeo_explora.export.peft_folder import export_peft, export_peft_transformers
from torchgeo_explora.export.rebuild import rebuild
from torchgeo_explora.export.timm_file import (
    export_dinov2,
    export_dinov3,
    export_timm,
    export_torchgeo,
    export_torchgeo_segmentation,
)
from torchgeo_explora.export.timm_folder import export_timm_folder
from torchgeo_explora.export.transformers_folder import export_transformers

__all__ = [
    'embed',
    'export_dinov2',
    'export_dinov3',
    'export_onnx',
    'export_peft',
    'export_peft_transformers',
    'export_timm',
    'export_timm_folder',
    'export_torchgeo',
    'export_torchgeo_segmentation',
    'export_transformers',
    'from_hub',
    'map_scenes',
    'push_to_hub',
    'rebuild',
    'search',
]
