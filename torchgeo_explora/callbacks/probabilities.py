"""Probabilities of a prediction run, as one Parquet file."""

from torchgeo_explora.callbacks.embeddings import EmbeddingWriter


class ProbabilityWriter(EmbeddingWriter):
    """Write (index, path, label, bounds, probabilities) rows, as `EmbeddingWriter`."""

    column = 'probabilities'
    file = 'predictions.parquet'
