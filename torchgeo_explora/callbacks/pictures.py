"""Pictures of what the model sees and of what it makes of it."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from torchgeo_explora.augment import Views
from torchgeo_explora.callbacks.figures import keep, panels


class Pictures(Callback):
    """Crops of a batch, and patch features coloured by their principal components.

    The crops show what augmentation does to the images. In the feature picture,
    patches of one colour are alike for the model; before and after share their axes
    of colour only within a row. Both go to TensorBoard, where it is the logger, and
    to *folder*.

    Args:
        folder: Where to write `crops.png` and `pca.png`; the trainer's root folder if
            None.
        images: Images shown.
        bands: Three channels shown as red, green and blue.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        images: int = 6,
        bands: tuple[int, int, int] = (0, 1, 2),
    ) -> None:
        """Keep the settings."""
        self.folder = folder
        self.images = images
        self.bands = bands
        self._shown: Tensor | None = None
        self._before: Tensor | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the crops and the features before the first step."""
        if self._shown is not None or not trainer.is_global_zero:
            return
        image = pl_module.unit_image({'image': batch['image'][: self.images]})
        self._shown = image
        self._before = self._components(pl_module, image)
        augment = getattr(pl_module.objective, 'augment', None)
        if augment is not None:
            devices = [pl_module.device] if pl_module.device.type == 'cuda' else []
            with torch.random.fork_rng(devices=devices):
                views = augment(image)
            mean = torch.tensor(pl_module.mean, device=image.device).view(-1, 1, 1)
            std = torch.tensor(pl_module.std, device=image.device).view(-1, 1, 1)
            crops = {'view': views}
            if isinstance(views, Views):
                names = [f'global {i + 1}' for i in range(2)]
                names += [f'local {i + 1}' for i in range(len(views.local))]
                crops = dict(zip(names, [*views.global_, *views.local], strict=True))
            rows = [image, *(crop * std + mean for crop in crops.values())]
            self._write(trainer, 'crops', rows, ['image', *crops])

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the features before and after."""
        if self._shown is None or self._before is None:
            return
        after = self._components(pl_module, self._shown)
        rows = [self._shown, self._before, after]
        self._write(trainer, 'pca', rows, ['image', 'before', 'after'])

    @torch.no_grad()
    def _components(self, pl_module: Any, image: Tensor) -> Tensor:
        """Return the first three components of the patch features, (B, 3, h, w)."""
        backbone = pl_module.backbone
        # A resumed run has its images from a checkpoint, on the CPU.
        view = pl_module.view(image.to(pl_module.device))
        features = backbone(view).patch.float()  # (B, N, D)
        height, width = (side // backbone.patch_size for side in view.shape[-2:])
        # Spectral groups share a place.
        features = features.unflatten(1, (-1, height * width)).mean(1)
        flat = features.flatten(0, 1)
        flat = flat - flat.mean(0)
        _, _, axes = torch.linalg.svd(flat, full_matrices=False)
        axes = axes[:3]
        # The sign of a component is arbitrary: the same one every time.
        axes = torch.where(axes.sum(-1, keepdim=True) < 0, -axes, axes)
        points = flat @ axes.T  # (B * N, 3)
        low, high = points.quantile(0.02, 0), points.quantile(0.98, 0)
        colours = ((points - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        return colours.view(len(image), height, width, 3).permute(0, 3, 1, 2).cpu()

    def _write(
        self, trainer: Trainer, name: str, rows: list[Tensor], titles: list[str]
    ) -> None:
        """Draw a row of pictures a step, to the folder and to TensorBoard."""
        figure, grid = panels(len(rows), len(rows[0]))
        for line, row, title in zip(grid, rows, titles, strict=True):
            for axes, image in zip(line, row, strict=True):
                shown = image if len(image) == 3 else image[list(self.bands)]
                axes.imshow(shown.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            line[0].set_ylabel(title)
        keep(figure, name, trainer, self.folder)

    def state_dict(self) -> dict[str, Any]:
        """Return the images and their first features, for the picture at the end."""
        if self._shown is None:
            return {}
        return {'shown': self._shown.cpu(), 'before': self._before.cpu()}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._shown = state_dict.get('shown')
        self._before = state_dict.get('before')
