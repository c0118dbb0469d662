"""Pictures of what a masked autoencoder reconstructs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from torchgeo_explora.callbacks.figures import panels, save_figure, shown_channels
from torchgeo_explora.objectives.objective import batch_metadata

_GREY = 0.5


class Reconstructions(Callback):
    """Draw input, masked input, reconstruction and error of a few images.

    The images and their masks stay the same through the run. With `norm_pix`, a patch
    is predicted up to its mean and standard deviation, and these are taken from the
    image. Visible patches are shown as they are. A series takes one column per time.
    The picture `reconstructions.png` is overwritten each time; the loggers that take
    figures get each one.

    Args:
        folder: Where to write; the trainer's root folder if None.
        every_n_steps: Optimizer steps between two pictures; None for only the last one.
        images: Number of images, or series, shown.
        bands: Three channels shown as red, green and blue: indices, or names if the
            backbone has names. If None, the true colours among Sentinel-2's bands, else
            the first three channels, or the first one in grey if there are fewer. With
            more than three channels, the middle 96 % of the values shown are stretched
            over the range.
        seed: Seed of the mask.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        every_n_steps: int | None = None,
        images: int = 6,
        bands: Sequence[int | str] | None = None,
        seed: int = 0,
    ) -> None:
        """Keep the settings."""
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.images = images
        self.bands = bands
        self.seed = seed
        self._batch: dict[str, Tensor] = {}
        self._first: Tensor | None = None
        self._drawn = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep some images, and reconstruct them before the first step."""
        if self._batch or not trainer.is_global_zero:
            return
        # Wrong bands raise before the first step.
        shown_channels(pl_module.backbone, self.bands)
        few = {k: v[: self.images] for k, v in batch_metadata(batch).items()}
        few['image'] = batch['image'][: self.images]
        self._batch = {**few, 'image': pl_module.view(pl_module.known_image(few))}
        self._first = self._paint(pl_module)[1]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Draw when it is due."""
        step, every = trainer.global_step, self.every_n_steps
        # The micro-batches after a step have the same step number.
        if every and step % every == 0 and step != self._drawn:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the last picture."""
        if trainer.global_step != self._drawn:
            self._draw(trainer, pl_module)

    def _paint(self, pl_module: Any) -> tuple[Tensor, Tensor]:
        """Return hidden pixels and the prediction, as `MAE.paint` does."""
        objective, mode = pl_module.objective, pl_module.training
        metadata = batch_metadata(self._batch)
        image = self._batch['image'] = self._batch['image'].to(pl_module.device)
        pl_module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            grid = objective.student.embed(image, **metadata).grid
            mask = objective.draw_mask(len(image), grid)
            # A data module's mask is for pixels, not for tokens.
            metadata.pop('mask', None)
            painted: tuple[Tensor, Tensor] = objective.paint(image, mask, **metadata)
        pl_module.train(mode)
        return painted

    def _draw(self, trainer: Trainer, pl_module: Any) -> None:
        # In a resumed run all ranks have the images; only the first one draws.
        if self._first is None or not trainer.is_global_zero:
            return
        self._drawn = trainer.global_step
        hidden, now = self._paint(pl_module)
        channels = shown_channels(pl_module.backbone, self.bands)
        mean, std = (
            torch.tensor(values, device=now.device)[:, None, None]
            for values in (pl_module.mean, pl_module.std)
        )
        # (B, C, H, W) or (B, T, C, H, W) -> (B or B * T, 3, H, W) in [0, 1]
        image, start, now = (
            (row.to(now.device) * std + mean)[..., channels, :, :].flatten(0, -4)
            for row in (self._batch['image'], self._first, now)
        )
        # Where there is no data, the image is black and there is no error.
        hidden = hidden[..., channels, :, :].flatten(0, -4) & ~image.isnan()
        image = image.nan_to_num(0)
        error = ((now - image).abs() * hidden).mean(1)
        largest = error.flatten().quantile(0.99).clamp(min=1e-6).item()
        if pl_module.backbone.in_channels > 3:
            values = image.transpose(0, 1).flatten(1)  # (3, values)
            low, high = values.quantile(torch.tensor([0.02, 0.98]).to(values), dim=1)
            scale = (high - low).clamp(min=1e-6)[:, None, None]
            image, start, now = (
                (row - low[:, None, None]) / scale for row in (image, start, now)
            )
        rows = {
            'input': image,
            'masked': image.masked_fill(hidden, _GREY),
            'at the start': torch.where(hidden, start, image),
            f'step {trainer.global_step}': torch.where(hidden, now, image),
        }
        figure, grid = panels(len(rows) + 1, len(image))
        for line, (title, row) in zip(grid, rows.items(), strict=False):
            for axes, picture in zip(line, row, strict=True):
                axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            line[0].set_ylabel(title)
        for axes, picture in zip(grid[-1], error, strict=True):
            axes.imshow(picture.cpu().numpy(), cmap='magma', vmin=0, vmax=largest)
        grid[-1][0].set_ylabel(f'error to {largest:.2g}')
        save_figure(figure, 'reconstructions', trainer, self.folder)

    def state_dict(self) -> dict[str, Any]:
        """Return the images, and their first reconstruction."""
        return {'batch': dict(self._batch), 'first': self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the images, and their first reconstruction."""
        self._batch = dict(state_dict['batch'])
        self._first = state_dict['first']
