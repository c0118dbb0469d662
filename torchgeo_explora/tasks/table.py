"""Results as a CSV file."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info


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
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{name}.csv'
    part = folder / f'.{name}.csv.part'
    with part.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)
    rank_zero_info(f'{name}: {path}')
