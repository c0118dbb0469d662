"""Pictures of augmented images and of patch features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from torchgeo_explora.augment import AnchoredViews, Views
from torchgeo_explora.callbacks.figures import (
    contrast,
    panels,
    save_figure,
    shown_channels,
    stretched,
)
from torchgeo_explora.objectives.objective import batch_metadata


class Pictures(Callback):
    """Draw crops of a batch, and patch features coloured by principal components.

    The crops show what augmentation does to the images, with their middle 96 % of
    values from black to white. In the picture of the features, patches of the same
    colour are alike for the model; colours can be compared within a row, not between
    before and after. For a series, the first image is shown, and the mean of the
    features over time. Both pictures go to *folder*, and to the loggers that take
    figures.

    Args:
        folder: Where to write `crops.png` and `pca.png`; the trainer's root folder if
            None.
        images: Number of images shown.
        bands: Three channels shown as red, green and blue: indices, or names if the
            backbone has names. If None, the true colours among Sentinel-2's bands, else
            the first three channels, or the first one in grey if there are fewer.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        images: int = 6,
        bands: Sequence[int | str] | None = None,
    ) -> None:
        """Keep the settings."""
        self.folder = folder
        self.images = images
        self.bands = bands
        self._batch: dict[str, Tensor] = {}
        self._before: Tensor | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the crops and the features before the first step."""
        if self._batch or not trainer.is_global_zero:
            return
        few = {k: v[: self.images] for k, v in batch_metadata(batch).items()}
        few['image'] = batch['image'][: self.images]
        image = pl_module.unit_image(few)
        self._batch = {**few, 'image': image}
        self._before = self._components(pl_module, self._batch)
        augment = getattr(pl_module.objective, 'augment', None)
        if augment is not None:
            devices = [pl_module.device] if pl_module.device.type == 'cuda' else []
            with torch.random.fork_rng(devices=devices):
                views = augment(image)
            mean = torch.tensor(pl_module.mean, device=image.device).view(-1, 1, 1)
            std = torch.tensor(pl_module.std, device=image.device).view(-1, 1, 1)
            crops = {'view': views}
            if isinstance(views, Views | AnchoredViews):
                names = [f'global {i + 1}' for i in range(2)]
                names += [f'local {i + 1}' for i in range(len(views.local))]
                crops = dict(zip(names, [*views.global_, *views.local], strict=True))
            rows = [image, *(crop * std + mean for crop in crops.values())]
            rows = [self._colours(pl_module, row) for row in rows]
            limits = contrast(rows[0])
            rows = [stretched(row, limits) for row in rows]
            self._write(trainer, 'crops', rows, ['image', *crops])

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the features before and after."""
        # In a resumed run all ranks have the images; only the first one draws.
        if self._before is None or not trainer.is_global_zero:
            return
        image = self._colours(pl_module, self._batch['image'])
        image = stretched(image, contrast(image))
        rows = [image, self._before, self._components(pl_module, self._batch)]
        self._write(trainer, 'pca', rows, ['image', 'before', 'after'])

    def _colours(self, pl_module: Any, image: Tensor) -> Tensor:
        """Return the channels shown, (B, 3, H, W), of images or of series of them."""
        channels = shown_channels(pl_module.backbone, self.bands)
        first = image[:, 0] if image.ndim == 5 else image
        return first[:, channels]

    @torch.no_grad()
    def _components(self, pl_module: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the first three components of the patch features, (B, 3, h, w)."""
        backbone = pl_module.backbone
        # The images of a resumed run come from a checkpoint, on the CPU.
        batch = {name: value.to(pl_module.device) for name, value in batch.items()}
        view = pl_module.view(batch['image'])
        features = backbone(view, **batch_metadata(batch)).patch.float()  # (B, N, D)
        height, width = (side // backbone.patch_size for side in view.shape[-2:])
        # The tokens of a place are averaged over spectral groups or times.
        features = features.unflatten(1, (-1, height * width)).mean(1)
        flat = features.flatten(0, 1)
        flat = flat - flat.mean(0)
        _, _, axes = torch.linalg.svd(flat, full_matrices=False)
        axes = axes[:3]
        # The sign of a component is arbitrary: make it the same every time.
        axes = torch.where(axes.sum(-1, keepdim=True) < 0, -axes, axes)
        points = flat @ axes.T  # (B * N, 3)
        low, high = points.quantile(0.02, 0), points.quantile(0.98, 0)
        colours = ((points - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        return colours.view(len(view), height, width, 3).permute(0, 3, 1, 2).cpu()

    def _write(
        self, trainer: Trainer, name: str, rows: list[Tensor], titles: list[str]
    ) -> None:
        """Draw rows of pictures, each with its title."""
        figure, grid = panels(len(rows), len(rows[0]))
        for line, row, title in zip(grid, rows, titles, strict=True):
            for axes, image in zip(line, row, strict=True):
                axes.imshow(image.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            line[0].set_ylabel(title)
        save_figure(figure, name, trainer, self.folder)

    def state_dict(self) -> dict[str, Any]:
        """Return the images and their features before the first step."""
        return {'batch': dict(self._batch), 'before': self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the images and their features."""
        self._batch = dict(state_dict['batch'])
        self._before = state_dict['before']
