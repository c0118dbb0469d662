"""How a folder of images is divided into splits and classes."""

import hashlib
import os
import warnings
from collections import Counter
from typing import Literal

from torchgeo_explora.datasets.folder.walk import walk
from torchgeo_explora.datasets.pixels.image_file import SUFFIXES
from torchgeo_explora.datasets.tables.dataset import NoSamplesError

type Split = Literal['train', 'val', 'test', 'predict']

SPLITS: tuple[Split, ...] = ('train', 'val', 'test', 'predict')

# Names of folders in lower case, as other data sets and tools have them.
_SPLIT_OF: dict[str, Split] = {
    'train': 'train',
    'training': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'test': 'test',
    'testing': 'test',
    'predict': 'predict',
}
# Folder that may hold the split folders.
_ABOVE = 'images'

# Suffixes of images that are not read. Unlike notes and labels, they are reported.
_OTHER_SUFFIXES = (
    '.avif',
    '.bmp',
    '.gif',
    '.h5',
    '.hdf',
    '.heic',
    '.img',
    '.j2k',
    '.jfif',
    '.jp2',
    '.nc',
    '.npy',
    '.npz',
    '.vrt',
)


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
        self.names, passed = _list_images(root)
        self._above = self._find_above()
        if self._above:
            inside = [name for name in self.names if name.startswith(self._above)]
            if outside := len(self.names) - len(inside):
                passed['outside of images'] = outside
            self.names = inside
        self._split_of = {name: self._find_split(name) for name in self.names}
        self.folders = sorted({s for s in self._split_of.values() if s is not None})
        self._check(passed)
        self._parts = self._draw(self._below('train') if self.folders else self.names)
        # Folders of images to predict are not classes.
        known = [split for split in SPLITS[:3] if self.members(split)] or ['predict']
        names = [self._class_names(split) for split in known]
        self.classes = sorted({name for split in names for name in split or ()})

    def _find_above(self) -> str:
        """Return the folder `images/` if it holds the split folders."""
        above = set()
        for name in self.names:
            first, *rest = name.split('/')
            if first.lower() == _ABOVE and rest[1:] and rest[0].lower() in _SPLIT_OF:
                above.add(f'{first}/')
        return min(above, default='')

    def _find_split(self, name: str) -> Split | None:
        """Return the split whose folder an image is in, None if it is in none."""
        folder, slash, _ = name.removeprefix(self._above).partition('/')
        return _SPLIT_OF.get(folder.lower()) if slash else None

    def _check(self, passed: Counter[str]) -> None:
        others = ', '.join(f'{count} {kind}' for kind, count in sorted(passed.items()))
        if not self.names:
            raise NoImagesError(
                f'no image found in {self.root}: *root* must be a folder with '
                f'{", ".join(SUFFIXES)} files, directly or in sub-folders'
                + (f'. Passed over: {others}' if others else '')
            )
        if others:
            warnings.warn(
                f'passed over images in {self.root}: {others}. Formats read:'
                f' {", ".join(SUFFIXES)}',
                stacklevel=4,
            )
        strays = [name for name, split in self._split_of.items() if split is None]
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
        return [name for name, found in self._split_of.items() if found == split]

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
        depth = (1 if self.folders else 0) + (1 if self._above else 0)
        members = self.members(split)
        parts = [name.split('/')[depth:] for name in members]
        strays = [n for n, part in zip(members, parts, strict=True) if len(part) == 1]
        flat = len(strays)
        if 0 < flat < len(parts):
            warnings.warn(
                f'{flat} of the {len(parts)} images of split {split!r} in {self.root} '
                f'are not in a class folder, such as {strays[0]}: the split has no '
                f'labels',
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


def has_split_folder(root: str, split: Split) -> bool:
    """Return whether there is a folder for a split, under any of its names."""
    names = {name for name, found in _SPLIT_OF.items() if found == split}
    places = [root]
    while places:
        place = places.pop()
        if not os.path.isdir(place):
            continue
        for entry in os.scandir(place):
            if entry.name.lower() in names and entry.is_dir():
                return True
            if place == root and entry.name.lower() == _ABOVE:
                places.append(entry.path)
    return False


def _list_images(root: str) -> tuple[list[str], Counter[str]]:
    """Return the images below a folder, and how many others there are by suffix."""
    if not os.path.isdir(root):
        raise NoImagesError(f'*root* is {root}, which is not a folder')
    found, passed = [], Counter[str]()
    for name in walk(root):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in SUFFIXES:
            found.append(name)
        elif suffix in _OTHER_SUFFIXES:
            passed[suffix] += 1
    return sorted(found), passed


def _uniform(key: str) -> float:
    """Return a number in [0, 1) that depends only on the key."""
    digest = hashlib.blake2b(os.fsencode(key), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
