"""Pictures of where the embeddings of a run's images lie, and of neighbours."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from torchgeo_explora.analysis.projection import project, turned
from torchgeo_explora.callbacks.evaluation import image_batches, lack_of_images
from torchgeo_explora.callbacks.figures import (
    contrast,
    panels,
    save_figure,
    shown_channels,
    stretched,
)
from torchgeo_explora.functional.spacing import evenly_spaced

#: Side of a thumbnail in pixels.
_SIDE = 40


class EmbeddingPictures(Callback):
    """Draw a map of the embeddings, and nearest neighbours, before and after a run.

    `map.png` shows thumbnails of training images at their places in a projection of the
    embeddings (UMAP, t-SNE or PCA, whichever is installed). `neighbours.png` shows, for
    a few images, which others were nearest before the run, and which are nearest after
    it. The middle 96 % of the images' values go from black to white. Both pictures go
    to the trainer's root folder and to the loggers that take figures. No labels are
    used.

    Args:
        images: Largest number of training images, evenly spaced.
        queries: Number of images whose neighbours are shown.
        neighbours: Number of neighbours shown for each.
        batch_size: Images embedded at once.
    """

    def __init__(
        self,
        images: int = 256,
        queries: int = 6,
        neighbours: int = 6,
        batch_size: int = 128,
    ) -> None:
        """Keep the settings."""
        self.images = images
        self.queries = queries
        self.neighbours = neighbours
        self.batch_size = batch_size
        self._before: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the images of another run."""
        if stage == 'fit' and not trainer.global_step:
            self._before = None

    def _embed(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> tuple[Tensor, ...]:
        """Return embeddings, (n, D), and thumbnails, (n, 3, h, w) in [0, 1]."""
        found, small = [], []
        task: Any = pl_module
        for batch in image_batches(
            trainer, 'train', self.images, self.batch_size, task.device
        ):
            found.append(task.embed(batch).cpu())
            image = task.unit_image(batch).nan_to_num(0).float()
            image = image[:, 0] if image.ndim == 5 else image
            image = image[:, shown_channels(task.backbone, None)]
            small.append(
                interpolate(
                    image, (_SIDE, _SIDE), mode='bilinear', antialias=True
                ).cpu()
            )
        thumbnails = torch.cat(small)
        return torch.cat(found), stretched(thumbnails, contrast(thumbnails))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embed the images before the first step; a resumed run has this already."""
        if self._before is None and lack_of_images(trainer) is None:
            with torch.compiler.set_stance('force_eager'):
                self._before = self._embed(trainer, pl_module)[0]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the embeddings before and after the run."""
        if self._before is None or not trainer.is_global_zero:
            return
        with torch.compiler.set_stance('force_eager'):
            after, small = self._embed(trainer, pl_module)
        if len(after) != len(self._before):
            # A resumed run whose folder has other images.
            return
        models = {'before': self._before, 'after': after}
        save_figure(embedding_map(models, small), 'map', trainer)
        figure = neighbour_sheet(models, small, self.queries, self.neighbours)
        save_figure(figure, 'neighbours', trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the embeddings before the first step."""
        return {'before': self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the embeddings."""
        self._before = state_dict['before']


def embedding_map(models: Mapping[str, Tensor], small: Tensor) -> Figure:
    """Return thumbnails at the places of their embeddings, a panel for each model.

    Args:
        models: Embeddings (n, D) by the name of the model.
        small: Thumbnails, (n, 3, h, w) in [0, 1].
    """
    figure = Figure(figsize=(7 * len(models), 7), layout='constrained')
    axes_of = figure.subplots(1, len(models), squeeze=False)[0]
    first: NDArray[np.float64] | None = None
    for axes, (name, features) in zip(axes_of, models.items(), strict=True):
        points, method = project(features)
        points = points if first is None else turned(points, first)
        first = points if first is None else first
        axes.scatter(*points.T, s=1, alpha=0)
        for point, image in zip(points, small, strict=True):
            picture = OffsetImage(image.permute(1, 2, 0).numpy(), zoom=0.45)
            axes.add_artist(AnnotationBbox(picture, tuple(point), frameon=False))
        axes.set_title(f'{name} ({method})')
        axes.set_xticks([])
        axes.set_yticks([])
        axes.margins(0.05)
    return figure


def neighbour_sheet(
    models: Mapping[str, Tensor], small: Tensor, queries: int, neighbours: int
) -> Figure:
    """Return images beside those with the nearest embeddings, nearest first.

    Args:
        models: Embeddings (n, D) by the name of the model.
        small: Thumbnails, (n, 3, h, w) in [0, 1].
        queries: Number of images whose neighbours are shown, evenly spaced.
        neighbours: Number of neighbours of each.
    """
    chosen = evenly_spaced(len(small), queries)
    count = min(neighbours, len(small) - 1)
    figure, grid = panels(len(chosen) * len(models), count + 1)
    for offset, (name, features) in enumerate(models.items()):
        x = normalize(features.float(), dim=-1)
        nearest = (x @ x.mT).fill_diagonal_(-torch.inf)[chosen].topk(count).indices
        for query, (image, others) in enumerate(zip(chosen, nearest, strict=True)):
            row = grid[query * len(models) + offset]
            row[0].set_ylabel(name, fontsize=8)
            for axes, index in zip(row, [image, *others], strict=True):
                axes.imshow(small[index].permute(1, 2, 0).numpy())
    return figure
