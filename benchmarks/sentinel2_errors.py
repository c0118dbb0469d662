"""Errors of masked autoencoders by band, on chips that none of them was trained on.

Usage: python benchmarks/sentinel2_errors.py FOLDER OUTPUT.png name=run.ckpt [...]

FOLDER holds the GeoTIFFs; the chips held out are the validation share of the
configuration that made the checkpoints (0.2, seed 0). Masks are the same for all
models. The error of a band is the root mean squared error of hidden pixels in
reflectance times 10,000, after the mean and deviation of each place (which `norm_pix`
leaves out) were put back; 'mean' predicts that mean, and nothing else. Prints JSON and
draws some chips in true colour, each in its own range of brightness.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import ExploraMAETask
from torchgeo_explora.tasks.run.raw_images import RawImages

DRAWN = 6


def held_out(folder: str, task: ExploraMAETask) -> tuple[Tensor, Tensor]:
    """Return the chips (B, C, H, W) in the task's units, and one unit in sensor values.

    The second is the width of each band's range, (C, 1, 1).
    """
    data = ImageFolderDataModule(folder, batch_size=64, val_fraction=0.2)
    data.setup('fit')
    task.raw_images = RawImages(task.backbone, data)
    chips = [data.val_dataset[i]['image'] for i in range(len(data.val_dataset))]
    image = task.unit_image({'image': torch.stack(chips)})
    size = (task.raw_images.unit_range.high - task.raw_images.unit_range.low).flatten()
    return image, size.view(-1, 1, 1)


@torch.no_grad()
def errors(
    task: ExploraMAETask, image: Tensor, size: Tensor, mask: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Return loss and errors by band, and the reconstruction (B, C, H, W)."""
    mean, std = (torch.tensor(s).view(-1, 1, 1) for s in (task.mean, task.std))
    view = (image - mean) / std
    objective = task.eval().objective
    hidden, painted = objective.paint(view, mask)
    painted = painted * std + mean
    off = ((painted - image) * size).square() * hidden
    by_band = (off.sum((0, 2, 3)) / hidden.sum((0, 2, 3))).sqrt()
    loss = objective.loss(view, mask).item()
    found = {'loss': round(loss, 4), 'rmse': [round(x, 1) for x in by_band.tolist()]}
    return found, torch.where(hidden, painted, image)


@torch.no_grad()
def places_mean(task: ExploraMAETask, image: Tensor) -> Tensor:
    """Return the mean of each place over its bands and pixels, (B, C, H, W)."""
    objective = task.objective
    rows = objective.student.patchify(image)
    mean, _ = objective.decoder.statistics(rows)
    grid = (len(objective.student.groups), *objective.student.grid)
    return objective.decoder.pixels(mean.expand_as(rows), grid)


def main(folder: str, picture: str, *models: str) -> None:
    """Score the models and draw what they make of the first chips."""
    report: dict[str, Any] = {}
    rows: dict[str, Tensor] = {}
    for model in models:
        name, path = model.split('=', 1)
        # Its delta and decoder are in the checkpoint, its base under its own path.
        task = ExploraMAETask.load_from_checkpoint(path)
        image, size = held_out(folder, task)
        torch.manual_seed(0)
        grid = (len(task.backbone.groups), *task.backbone.grid)
        mask = task.objective.draw_mask(len(image), grid)
        if not report:
            report['bands'] = list(task.backbone.bands)
            report['chips'] = len(image)
            hidden, _ = task.objective.paint(image, mask)
            off = ((places_mean(task, image) - image) * size).square() * hidden
            by_band = (off.sum((0, 2, 3)) / hidden.sum((0, 2, 3))).sqrt()
            report['mean'] = {'rmse': [round(x, 1) for x in by_band.tolist()]}
            rows['input'] = image
            rows['masked'] = image.masked_fill(hidden, torch.nan)
        report[name], rows[name] = errors(task, image, size, mask)
    low = task.raw_images.unit_range.low
    draw(picture, {n: row * size + low for n, row in rows.items()}, report['bands'])
    print(json.dumps(report))


def draw(path: str, rows: dict[str, Tensor], bands: list[str]) -> None:
    """Draw some chips in true colour, a row for each model.

    Args:
        path: Where the picture goes.
        rows: Sensor values (B, C, H, W) by title, the input first; NaN is grey.
        bands: Names of the channels.
    """
    colours = [bands.index(band) for band in ('B04', 'B03', 'B02')]
    chips = [i * len(rows['input']) // DRAWN for i in range(DRAWN)]
    figure = Figure(figsize=(1.5 * DRAWN, 1.5 * len(rows)), layout='constrained')
    panels = figure.subplots(len(rows), DRAWN, squeeze=False)
    for line, (name, images) in zip(panels, rows.items(), strict=True):
        for axes, chip in zip(line, chips, strict=True):
            # One range for the three bands, so that colours stay true.
            ends = torch.tensor([0.02, 0.98])
            low, high = rows['input'][chip, colours].quantile(ends)
            shown = ((images[chip, colours] - low) / (high - low)).clamp(0, 1)
            axes.imshow(shown.nan_to_num(0.5).permute(1, 2, 0).numpy())
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    main(*sys.argv[1:])
