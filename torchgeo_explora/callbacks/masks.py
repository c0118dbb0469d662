"""Labelled pixels of a prediction run, as one Parquet file of PNG images."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from torchgeo_explora.callbacks.embeddings import EmbeddingWriter


class MaskWriter(EmbeddingWriter):
    """Write (index, path, bounds, mask) rows, as `EmbeddingWriter`.

    `mask` holds the bytes of a PNG image whose 8-bit values are the classes. A scene
    has a writer of its own, `RasterWriter`.
    """

    column = 'mask'
    file = 'masks.parquet'

    def columns(self, prediction: Sequence[Tensor]) -> dict[str, pa.Array]:
        """Return the images of classes, (H, W) each."""
        masks = [mask.cpu().numpy().astype(np.uint8) for mask in prediction]
        return {self.column: pa.array([_png(mask) for mask in masks], pa.binary())}


def _png(mask: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(mask).save(buffer, format='png')
    return buffer.getvalue()
