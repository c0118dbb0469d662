"""Pictures of what the model sees and of what it makes of it."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import Tensor


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
            rows = [image, *(views.global_ * std + mean), *(views.local * std + mean)]
            titles = ['image', 'global 1', 'global 2']
            titles += [f'local {i + 1}' for i in range(len(views.local))]
            self._write(trainer, 'crops', rows, titles)

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
        view = pl_module.view(image)
        features = backbone(view).patch.float()  # (B, N, D)
        height, width = (side // backbone.patch_size for side in view.shape[-2:])
        flat = features.flatten(0, 1)
        flat = flat - flat.mean(0)
        _, _, axes = torch.linalg.svd(flat, full_matrices=False)
        axes = axes[:3]
        # The sign of a component is arbitrary: the same one every time.
        axes = torch.where(axes.sum(-1, keepdim=True) < 0, -axes, axes)
        points = flat @ axes.T  # (B * N, 3)
        low, high = points.quantile(0.02, 0), points.quantile(0.98, 0)
        colours = ((points - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        return colours.view(len(image), height, width, 3).permute(0, 3, 1, 2)

    def _write(
        self, trainer: Trainer, name: str, rows: list[Tensor], titles: list[str]
    ) -> None:
        """Draw a row of pictures a step, to the folder and to TensorBoard."""
        count = len(rows[0])
        figure = Figure(
            figsize=(1.3 * count + 0.6, 1.3 * len(rows)), layout='constrained'
        )
        panels = figure.subplots(len(rows), count, squeeze=False)
        for line, row, title in zip(panels, rows, titles, strict=True):
            for axes, image in zip(line, row, strict=True):
                shown = image if len(image) == 3 else image[list(self.bands)]
                axes.imshow(shown.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
                axes.set_xticks([])
                axes.set_yticks([])
            line[0].set_ylabel(title)
        path = Path(self.folder or trainer.default_root_dir) / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        rank_zero_info(f'{name}: {path}')
        for logger in trainer.loggers:
            experiment = getattr(logger, 'experiment', None)
            add_figure = getattr(experiment, 'add_figure', None)
            if add_figure is not None:
                add_figure(name, figure, global_step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the images and their first features, for the picture at the end."""
        if self._shown is None:
            return {}
        return {'shown': self._shown.cpu(), 'before': self._before.cpu()}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._shown = state_dict.get('shown')
        self._before = state_dict.get('before')
