"""What a masked autoencoder knows of a hidden patch: its colours, or its structure too.

Usage: python benchmarks/sentinel2_structure.py FOLDER run.ckpt

FOLDER holds the GeoTIFFs; the chips held out are those of `sentinel2_errors.py`. The
normalised pixels of a hidden patch are the mean of each band, and what is left, its
structure. For each, the share of the variance that the model explains is printed (1 is
all, 0 or less is nothing), for patches of which another group of bands is visible at
the same place, and for the others. `linear` is what a linear map from the true
structure of group 1 explains of that of group 0, fitted on half of the chips and tried
on the rest: what could be known. Prints JSON.
"""

import json
import sys

import torch
from sentinel2_errors import held_out
from torch import Tensor

from torchgeo_explora.tasks import ExploraMAETask


def explained(predicted: Tensor, true: Tensor) -> float:
    """Return 1 - squared error over squared deviation from the mean of each column."""
    deviation = (true - true.nanmean(0)).square().nanmean()
    return round(1 - ((predicted - true).square().nanmean() / deviation).item(), 3)


def linear(source: Tensor, goal: Tensor) -> float:
    """Return what a ridge regression of *goal* (N, Q) on *source* (N, P) explains."""
    half = len(source) // 2
    x, y = source[:half], goal[:half]
    weights = torch.linalg.solve(x.T @ x + 0.5 * torch.eye(x.shape[1]), x.T @ y)
    return explained(source[half:] @ weights, goal[half:])


@torch.no_grad()
def main(folder: str, checkpoint: str) -> None:
    """Score one model."""
    task = ExploraMAETask.load_from_checkpoint(checkpoint).eval()
    image, _ = held_out(folder, task)
    view = task.preprocess()(image)
    objective, groups = task.objective, task.backbone.groups
    grid = (len(groups), *task.backbone.grid)
    torch.manual_seed(0)
    mask = objective.draw_mask(len(view), grid)
    # Bands of a patch, one after the other, then NaN: (B, G, h * w, C, p * p)
    shape = (len(groups), grid[1] * grid[2])
    pixels = task.backbone.patch_size**2
    true, predicted = (
        rows.float().unflatten(1, shape).unflatten(-1, (-1, pixels))
        for rows in (
            objective._target(view),
            objective._decode(objective._embed(view, {}), mask, {}),
        )
    )
    hidden = mask.unflatten(1, shape)
    means = true.mean(-1), predicted.mean(-1)
    structures = (
        true - means[0].unsqueeze(-1),
        predicted - means[1].unsqueeze(-1),
    )
    report: dict[str, object] = {'chips': len(view)}
    known = ~hidden.all(1, keepdim=True)
    for name, chosen in (('beside', hidden & known), ('alone', hidden & ~known)):
        report[name] = {
            part: explained(guess[chosen].flatten(1), truth[chosen].flatten(1))
            for part, (truth, guess) in (
                ('means', means),
                ('structure', structures),
            )
        }
    first, second = (
        structures[0][:, group, :, : len(groups[group])].flatten(0, 1).flatten(1)
        for group in (0, 1)
    )
    report['linear'] = linear(second, first)
    print(json.dumps(report))


if __name__ == '__main__':
    main(*sys.argv[1:])
