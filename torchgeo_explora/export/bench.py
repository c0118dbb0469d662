"""A backbone, with or without a delta, as a model of torchgeo-bench."""

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchgeo_bench.models.interface import BenchModel

from torchgeo_explora.augment import Preprocess, SelectBands, UnitRange
from torchgeo_explora.models.backbones.tokens import Pooling
from torchgeo_explora.tasks.run.backbone import (
    build_backbone,
    fold_delta,
    side_of,
    statistics,
)


class ExploraBench(BenchModel):
    """A frozen backbone in torchgeo-bench, with the preprocessing of this package.

    torchgeo-bench builds it with the bands of each data set. Its own normalisation is
    switched off. Instead, bands are selected by name if the backbone names them, values
    are mapped to [0, 1], and they are normalised with the mean and standard deviation
    of the base or of the delta.

    Args:
        bands: torchgeo-bench's descriptions of the channels.
        model: Name of a timm model, or the class path of a backbone.
        weights: A file or the name of published weights; True for timm's own.
        delta: The file of a delta for these weights.
        image_size: Side of the images that the model sees. By default, for a model
            given by name, that of the delta's run, or 224 without one.
        pooling: 'cls', 'mean' (of the patch tokens) or 'both'; the backbone's default
            if None.
        value_range: (low, high) of the sensor values. If None, that of the weights or
            of the delta; if they have none, 0 to 10,000, 255 or 1, depending on the
            largest value.
    """

    def __init__(
        self,
        bands: Sequence[Any],
        model: str,
        weights: str | bool = True,
        delta: str | None = None,
        image_size: int | None = None,
        pooling: Pooling | None = None,
        value_range: tuple[Any, Any] | None = None,
        **_: Any,
    ) -> None:
        """Build the backbone."""
        super().__init__(bands=list(bands), normalization='identity')
        # Named weights determine the number of channels.
        names = [_name(band) for band in bands]
        named = isinstance(weights, str) and 'Weights.' in weights
        channels = None if named else len(names)
        backbone = build_backbone(model, weights, channels, image_size, delta=delta)
        if delta is not None:
            backbone = fold_delta(backbone, delta)
        self.backbone = backbone.eval()
        wanted = backbone.bands
        self.select = SelectBands(names, wanted) if wanted else torch.nn.Identity()
        ends = value_range or backbone.value_range or (0, _highest(bands))
        self.unit_range = UnitRange(*ends)
        side = image_size or side_of(backbone)
        self.view = Preprocess(side, *statistics(backbone))
        self.pooling = pooling or backbone.pooling

    @torch.no_grad()
    def _forward_patch_features(self, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of raw images (B, C, H, W)."""
        view = self.view(self.unit_range(self.select(images)))
        return cast(Tensor, self.backbone(view).pooled(self.pooling))


def _name(band: Any) -> str:
    """Return the name of a band: '04 - Red' and 'B04' are the same band."""
    code = re.match(r'(\d{1,2}A?) - ', band.source_name)
    return f'B{code[1]}' if code else str(band.source_name)


def _highest(bands: Sequence[Any]) -> int:
    """Return the upper end of the range that the bands' largest value lies in."""
    most = max(band.max for band in bands)
    return 10_000 if most > 1000 else 255 if most > 10 else 1
