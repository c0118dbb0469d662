"""Features of a frozen backbone, computed once and kept on disk."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchgeo_explora.tasks.downstream.batches import labels_of
from torchgeo_explora.tasks.downstream.contents import contents
from torchgeo_explora.writing import replacing

#: Features (B, ...) of a raw batch.
type Compute = Callable[[dict[str, Any]], Tensor]


class CachedFeatures(Dataset[dict[str, Tensor]]):
    """Samples of `features`, `label` and `index` instead of images.

    Args:
        path: The array of features, (N, ...) float32; the labels are next to it.
        source: The data set of the images; workers do not need it.
    """

    def __init__(self, path: Path, source: Dataset[Any] | None) -> None:
        """Map the file into memory."""
        self.path, self.source = path, source
        self.features = np.load(path, mmap_mode='r')
        self.labels = np.load(_labels_of(path))

    def __reduce__(self) -> tuple[type, tuple[Path, None]]:
        """Let a spawned worker map the file itself."""
        return CachedFeatures, (self.path, None)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the features of an image, as read from disk."""
        return {
            'features': torch.from_numpy(np.array(self.features[index])),
            'label': torch.from_numpy(np.array(self.labels[index])),
            'index': torch.tensor(index),
        }


def use_cached_features(
    trainer: Trainer,
    splits: Sequence[str],
    folder: Path,
    identity: str,
    compute: Compute,
) -> None:
    """Replace data sets of the trainer's data module by their features, in place.

    Every process must call it: the first one computes what all of them read.

    Args:
        trainer: A trainer whose data module is set up.
        splits: Splits to replace, if the data module has images for them.
        folder: See `cache_features`.
        identity: See `cache_features`.
        compute: Features (B, ...) of a raw batch.
    """
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    for split in splits:
        dataset = getattr(datamodule, f'{split}_dataset', None)
        # The data module may still hold the features of an earlier run.
        dataset = getattr(dataset, 'source', dataset)
        if dataset is None or not hasattr(dataset, '__len__') or not len(dataset):
            continue
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=datamodule.batch_size,
            num_workers=datamodule.num_workers,
            collate_fn=datamodule.collate_fn,
        )
        for turn in (True, False):
            if trainer.is_global_zero == turn:
                cached = cache_features(folder, split, identity, loader, compute)
            trainer.strategy.barrier('features')
        setattr(datamodule, f'{split}_dataset', cached)


def cache_features(
    folder: Path,
    split: str,
    identity: str,
    loader: DataLoader[Any],
    compute: Compute,
) -> CachedFeatures:
    """Return the features of a data set, from disk if they are there.

    The file's name holds a hash of what the features depend on: *identity*, and all
    images and labels (see `contents`).

    Args:
        folder: Folder of the files.
        split: Name of the split, for the file.
        identity: Describes the backbone and its view.
        loader: Loads the data set in its order, without random changes.
        compute: Features (B, ...) of a raw batch.
    """
    dataset: Any = loader.dataset
    digest = hashlib.sha256(f'{identity} {contents(loader)}'.encode())
    path = folder / f'{split}-{digest.hexdigest()[:16]}.npy'
    if path.exists() and _labels_of(path).exists():
        rank_zero_info(f'features of {split}: {path}')
    else:
        _fill(path, len(dataset), loader, compute)
        rank_zero_info(f'features of {split}: written to {path}')
    return CachedFeatures(path, dataset)


def _fill(
    path: Path,
    size: int,
    loader: DataLoader[Any],
    compute: Compute,
) -> None:
    """Write features and labels; an interruption leaves no partial file."""
    array: Any = None
    labels: list[NDArray[Any]] = []
    first = 0
    # The array is moved into place last.
    with replacing(path) as part, replacing(_labels_of(path)) as labels_part:
        for batch in loader:
            features = compute(batch).float().cpu().numpy()
            if array is None:
                shape = (size, *features.shape[1:])
                array = open_memmap(part, 'w+', np.float32, shape)
            last = first + len(features)
            array[first:last] = features
            labels.append(labels_of(batch).cpu().numpy())
            first = last
        array.flush()
        with labels_part.open('wb') as file:
            np.save(file, np.concatenate(labels))


def _labels_of(path: Path) -> Path:
    return path.with_suffix('.labels.npy')
