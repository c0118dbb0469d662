"""How a folder of images is divided into splits and classes."""

import hashlib
import os
import warnings
from typing import Literal

from torchgeo_explora.datasets.folder.walk import walk
from torchgeo_explora.datasets.pixels.image_file import SUFFIXES
from torchgeo_explora.datasets.tables.dataset import NoSamplesError

type Split = Literal['train', 'val', 'test', 'predict']

SPLITS: tuple[Split, ...] = ('train', 'val', 'test', 'predict')


class NoImagesError(NoSamplesError):
    """A folder, or a split of it, without a single image."""


class FolderLayout:
    """The images below a folder, their splits and their classes.

    The rules are those of `ImageFolder`.

    Args:
        root: The folder.
        val_fraction: Share of the training images for 'val', in [0, 1).
        test_fraction: Share of the training images for 'test', in [0, 1).
        seed: Seed of the fractions.

    Attributes:
        names: Paths of all images, relative to *root*, forward slashes, sorted.
        folders: The splits that have their own folder.
        classes: Class names in alphabetical order; empty without class folders.

    Raises:
        NoImagesError: If *root* is not a folder or has no image.
        ValueError: If there are images beside the split folders, or the fractions do
            not fit.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        """List the images and divide them."""
        self.root = root
        self.seed = seed
        self.fractions = {'val': val_fraction, 'test': test_fraction}
        self.names = _list_images(root)
        tops = [name.partition('/')[0] for name in self.names]
        self.folders = sorted(set(tops) & set(SPLITS))
        self._check(tops)
        self._parts = self._draw(self._below('train') if self.folders else self.names)
        # Folders of images to predict are not classes.
        known = [split for split in SPLITS[:3] if self.members(split)] or ['predict']
        names = [self._class_names(split) for split in known]
        self.classes = sorted({name for split in names for name in split or ()})

    def _check(self, tops: list[str]) -> None:
        if not self.names:
            raise NoImagesError(
                f'no image found in {self.root}: *root* must be a folder with '
                f'{", ".join(SUFFIXES)} files, directly or in sub-folders'
            )
        strays = [
            n for n, top in zip(self.names, tops, strict=True) if top not in SPLITS
        ]
        if self.folders and strays:
            raise ValueError(
                f'{self.root} has split folders {self.folders} and other images, such '
                f'as {strays[0]}: move all images into the split folders, or rename a '
                f'class folder that has the name of a split'
            )
        for split, fraction in self.fractions.items():
            if not 0 <= fraction < 1:
                raise ValueError(
                    f'*{split}_fraction* must be in [0, 1), not {fraction}'
                )
            if fraction and split in self.folders:
                raise ValueError(
                    f'*{split}_fraction* is {fraction} but {self.root} has a folder '
                    f'{split}: leave the fraction out, or remove the folder'
                )
        if sum(self.fractions.values()) >= 1:
            raise ValueError(
                f'*val_fraction* and *test_fraction* add up to '
                f'{sum(self.fractions.values())}: nothing is left to train on'
            )

    def _below(self, split: str) -> list[str]:
        return [name for name in self.names if name.startswith(f'{split}/')]

    def _draw(self, pool: list[str]) -> dict[str, list[str]]:
        """Split the training images by their hash; a fraction gets at least one."""
        if not any(self.fractions.values()):
            return {'train': pool, 'val': [], 'test': []}
        draws = {name: _uniform(f'{self.seed}/{name}') for name in pool}
        left = sorted(pool, key=draws.__getitem__)
        parts, edge = {}, 0.0
        for split, fraction in self.fractions.items():
            edge += fraction
            count = sum(draws[name] < edge for name in left)
            count = max(count, 1) if fraction else 0
            parts[split], left = sorted(left[:count]), left[count:]
        return {'train': sorted(left), **parts}

    def members(self, split: str) -> list[str]:
        """Return the names of a split's images, sorted."""
        if split != 'train' and split in self.folders:
            return self._below(split)
        return self.names if split == 'predict' else self._parts[split]

    def labels(self, split: str) -> list[int] | None:
        """Return the labels of a split, None if it has no class folders."""
        names = self._class_names(split)
        if names is None or not set(names) <= set(self.classes):
            return None
        order = {name: i for i, name in enumerate(self.classes)}
        return [order[name] for name in names]

    def _class_names(self, split: str) -> list[str] | None:
        """Return the class folder of each image, None if some are not in one."""
        depth = 1 if self.folders else 0
        parts = [name.split('/')[depth:] for name in self.members(split)]
        flat = sum(len(part) == 1 for part in parts)
        if 0 < flat < len(parts):
            warnings.warn(
                f'{flat} of the {len(parts)} images of split {split!r} in {self.root} '
                f'are not in a class folder: the split has no labels',
                stacklevel=4,
            )
        return None if flat else [part[0] for part in parts]

    def why_empty(self, split: str) -> str:
        """Say why a split has no image and what to do."""
        if split == 'train':
            return (
                f'no training image found in {self.root}: put them in a folder train, '
                f'or lower *val_fraction* and *test_fraction*'
            )
        return (
            f'no image found for split {split!r} in {self.root}: put them in a folder '
            f'{split}, or pass *{split}_fraction*'
        )


def _list_images(root: str) -> list[str]:
    if not os.path.isdir(root):
        raise NoImagesError(f'*root* is {root}, which is not a folder')
    return sorted(name for name in walk(root) if name.lower().endswith(SUFFIXES))


def _uniform(key: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the key."""
    digest = hashlib.blake2b(os.fsencode(key), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
