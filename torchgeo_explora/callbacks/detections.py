"""Objects that were found in a prediction run, as one Parquet file."""

from typing import Any

import pyarrow as pa

from torchgeo_explora.callbacks.embeddings import EmbeddingWriter


class DetectionWriter(EmbeddingWriter):
    """Write (index, path, boxes, labels, scores) rows, as `EmbeddingWriter`.

    The last three are lists, an entry for each object; boxes are (xmin, ymin, xmax,
    ymax) in pixels.
    """

    file = 'detections.parquet'

    def columns(self, prediction: list[dict[str, Any]]) -> dict[str, pa.Array]:
        """Return lists of boxes, labels and scores."""
        kinds = {
            'boxes': pa.list_(pa.list_(pa.float32(), 4)),
            'labels': pa.list_(pa.int64()),
            'scores': pa.list_(pa.float32()),
        }
        return {
            name: pa.array([found[name].tolist() for found in prediction], kind)
            for name, kind in kinds.items()
        }
