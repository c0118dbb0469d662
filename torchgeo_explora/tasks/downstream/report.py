"""A picture of which classes are taken for which."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import Tensor

from torchgeo_explora.writing import replacing


def draw_confusion(counts: Tensor, names: Sequence[str] | None = None) -> Figure:
    """Return a confusion matrix as a figure; rows are shares of the true class.

    Args:
        counts: (C, C), truth by prediction. A class without samples stays empty.
        names: Names of the classes; their numbers if None.
    """
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()
    size = len(shares)
    side = max(3.0, 0.25 * size + 1.5)
    figure = Figure(figsize=(side + 0.6, side), layout='constrained')
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap='Blues')
    figure.colorbar(picture, ax=axes, shrink=0.8)
    labels = list(names) if names else [str(i) for i in range(size)]
    axes.set_xticks(range(size), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(size), labels, fontsize=7)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    if size <= 12:
        for row in range(size):
            for column in range(size):
                share = shares[row, column]
                colour = 'white' if share > 0.5 else 'black'
                text = f'{share:.2f}'
                axes.text(
                    column, row, text, ha='center', va='center', color=colour, size=6
                )
    return figure


def write_table(trainer: Trainer, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV file in the trainer's folder, whole or not at all.

    Every process must call it; the first one writes.

    Args:
        trainer: Tells the folder.
        name: Of the file, without its ending.
        rows: At least one; all with the keys of the first.
    """
    # Lightning broadcasts the folder: every rank must ask for it.
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if not trainer.is_global_zero:
        return
    path = folder / f'{name}.csv'
    with replacing(path) as part, part.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    rank_zero_info(f'{name}: {path}')
