"""Lightning callbacks."""

from torchgeo_explora.callbacks.cost import Cost
from torchgeo_explora.callbacks.curves import Curves
from torchgeo_explora.callbacks.defaults import (
    downstream_callbacks,
    pretraining_callbacks,
)
from torchgeo_explora.callbacks.embedding_pictures import EmbeddingPictures
from torchgeo_explora.callbacks.knn import OnlineKNN
from torchgeo_explora.callbacks.pictures import Pictures
from torchgeo_explora.callbacks.progress import StepProgressBar
from torchgeo_explora.callbacks.quality import LabelFreeQuality
from torchgeo_explora.callbacks.reconstructions import Reconstructions
from torchgeo_explora.callbacks.writers.parquet import (
    DetectionWriter,
    EmbeddingWriter,
    MaskWriter,
    ProbabilityWriter,
)
from torchgeo_explora.callbacks.writers.raster_writer import RasterWriter

__all__ = [
    'Cost',
    'Curves',
    'DetectionWriter',
    'EmbeddingPictures',
    'EmbeddingWriter',
    'LabelFreeQuality',
    'MaskWriter',
    'OnlineKNN',
    'Pictures',
    'ProbabilityWriter',
    'RasterWriter',
    'Reconstructions',
    'StepProgressBar',
    'downstream_callbacks',
    'pretraining_callbacks',
]
