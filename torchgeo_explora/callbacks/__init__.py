"""Lightning callbacks."""

from torchgeo_explora.callbacks.curves import Curves
from torchgeo_explora.callbacks.embeddings import EmbeddingWriter
from torchgeo_explora.callbacks.knn import OnlineKNN
from torchgeo_explora.callbacks.pictures import Pictures

__all__ = ['Curves', 'EmbeddingWriter', 'OnlineKNN', 'Pictures']
