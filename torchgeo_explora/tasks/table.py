"""Results as a CSV file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from torchgeo_explora.writing import replacing


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
