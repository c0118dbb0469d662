"""A folder of the user's own images."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.datasets.folder.layout import (
    SPLITS,
    FolderLayout,
    NoImagesError,
    Split,
)
from torchgeo_explora.datasets.pixels.figure import colour_indices
from torchgeo_explora.datasets.pixels.image_file import ImageFile, UnreadableImageError
from torchgeo_explora.datasets.pixels.picture import fit_square
from torchgeo_explora.datasets.pixels.scaling import (
    RANGES,
    ValueRange,
    check_range,
    to_unit,
)


class ImageFolder(NonGeoDataset):
    """JPEG, PNG, TIFF and GeoTIFF images in a folder, with or without labels.

    The images of a split lie directly in its folder (no labels) or in one folder a
    class (labels follow the alphabetical order of the class folders; deeper folders
    are allowed). Hidden files and files with other suffixes are passed over.

    Splits are the sub-folders ``train``, ``val``, ``test`` and ``predict`` of *root*.
    Without a folder of its own, 'val' or 'test' is a fraction of the training images,
    drawn from a hash of the seed and the path: an image keeps its split whatever is
    added, removed or listed in another order. Without a folder of its own, 'predict'
    is every image. The order is that of the sorted paths.

    Bands are matched by the descriptions in each GeoTIFF, so files may hold them in
    different orders.

    Args:
        root: The folder.
        split: 'train', 'val', 'test' or 'predict'.
        size: Side in pixels of the square images returned: the shorter side is resized
            to it (bilinear, antialiased) and the centre is cropped. Needed if the
            images differ in size; None returns them as they are.
        bands: Bands to return and their order: numbers from 1, or names as in the
            band descriptions ('red', 'green', 'blue' in JPEG and PNG). All by default.
        value_range: (low, high) of the sensor values, each one number or a number a
            band. By default follows the stored type: uint8 (0, 255); uint16 and int16
            (0, 10000), the scale of Sentinel-2 reflectance; float (0, 1). Dark for
            most reflectance: see :func:`measure_range`.
        val_fraction: Share of the training images for 'val', in [0, 1).
        test_fraction: Share of the training images for 'test', in [0, 1).
        seed: Seed of the fractions.
        on_error: 'raise' stops at an unreadable image; 'skip' warns once, counts it in
            ``skipped`` and returns the next readable image in its place.
        transforms: Applied to each sample.
        band_names: Names of the bands in every file, in their order, where the files
            do not tell: GeoTIFFs without band descriptions.

    Attributes:
        paths: Paths of the split's images, sorted.
        labels: Their labels, or None.
        classes: Names of the classes, in the order of the labels.
        bands: Names of the bands returned.
        value_range: (low, high).
        no_data: Value of pixels without data, in all bands; None if the first file does
            not declare any.
        range_known: Whether *value_range* was given or is all that 8 bits or a float
            can mean, not the usual scale of 16 bits.

    Raises:
        NoImagesError: If the folder or the split has no image.
        UnreadableImageError: If an image cannot be read and *on_error* is 'raise', or
            if none can.
        ValueError: If an argument, or the images among themselves, do not fit.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data',
        split: Split = 'train',
        size: int | None = None,
        bands: Sequence[int | str] | None = None,
        value_range: tuple[float, float]
        | tuple[Sequence[float], Sequence[float]]
        | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
        on_error: Literal['raise', 'skip'] = 'raise',
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        band_names: Sequence[str] | None = None,
    ) -> None:
        """List the files and read the header of the first one."""
        if split not in SPLITS:
            raise ValueError(f'*split* must be one of {SPLITS}, not {split!r}')
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"*on_error* must be 'raise' or 'skip', not {on_error!r}")
        if size is not None and size < 1:
            raise ValueError(f'*size* must be a positive number of pixels, not {size}')
        self.root = os.fspath(root)
        self.split = split
        self.size = size
        self.on_error = on_error
        self.transforms = transforms
        self._names = band_names

        layout = FolderLayout(self.root, val_fraction, test_fraction, seed)
        members = layout.members(split)
        if not members:
            raise NoImagesError(layout.why_empty(split))
        self.paths = [os.path.join(self.root, name) for name in members]
        self.classes = layout.classes
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}
        self.labels = layout.labels(split)

        # In shared memory: what a worker finds unreadable, all know.
        self._unreadable = torch.zeros(len(self.paths), dtype=torch.bool)
        self._unreadable.share_memory_()
        self._read_first_header(None if bands is None else tuple(bands))
        self._range_given = value_range is not None
        self.value_range = (
            self._usual_range()
            if value_range is None
            else check_range(value_range, self.bands)
        )
        self.range_known = self._range_given or '16' not in self._first[2]

    def _read_first_header(self, wanted: tuple[int | str, ...] | None) -> None:
        for index, path in enumerate(self.paths):
            try:
                with ImageFile(path, self._names) as file:
                    self._first = (path, file.bands, file.dtype, file.size)
                    self._wanted = wanted
                    self.no_data = file.no_data
                    if wanted is None:
                        self.bands = file.bands
                    else:
                        indices = file.find(wanted)
                        self.bands = tuple(file.bands[i] for i in indices)
                    return
            except UnreadableImageError as error:
                if self.on_error == 'raise':
                    raise
                self._skip(index, error)
        raise self._nothing_left()

    def _usual_range(self) -> ValueRange:
        path, _, dtype, _ = self._first
        if dtype not in RANGES:
            raise ValueError(
                f'{path} holds {dtype} values, which have no usual range: pass '
                f'value_range=(low, high)'
            )
        return RANGES[dtype]

    def __len__(self) -> int:
        """Return the number of images, unreadable ones included."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image.

        Args:
            index: From 0, or from the end if negative.

        Returns:
            ``image`` (C, H, W) in sensor values, ``path``, ``index`` (0-d long) and,
            with labels, ``label`` (0-d long). Under ``on_error='skip'`` all of them
            are those of the image returned.

        Raises:
            IndexError: If *index* is out of range.
            UnreadableImageError: If the image cannot be read and *on_error* is
                'raise', or if no image can.
            ValueError: If the image has other bands, another type or, without *size*,
                another size than the first.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} is out of range for {len(self)} images')
        for step in range(len(self)):
            found = (index + step) % len(self)
            if self._unreadable[found]:
                continue
            try:
                return self._read(found)
            except UnreadableImageError as error:
                if self.on_error == 'raise':
                    raise
                self._skip(found, error)
        raise self._nothing_left()

    def _read(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        with ImageFile(path, self._names) as file:
            indices = self._check_file(file)
            image = file.read(indices)
        if self.size is not None:
            image = fit_square(image, self.size, self.no_data)
        sample: dict[str, Any] = {
            'image': image,
            'path': path,
            'index': torch.tensor(index),
        }
        if self.labels is not None:
            sample['label'] = torch.tensor(self.labels[index])
        if self.transforms is not None:
            sample = self.transforms(sample)
        return sample

    def _check_file(self, file: ImageFile) -> list[int]:
        """Return the bands to read from a file that fits the first one."""
        first, bands, dtype, size = self._first
        if not self._range_given and RANGES.get(file.dtype) != self.value_range:
            raise ValueError(
                f'{file.path} holds {file.dtype} values but {first} holds {dtype}: '
                f'pass value_range=(low, high) for both, or separate them'
            )
        if self.size is None and file.size != size:
            raise ValueError(
                f'{file.path} is {file.size} pixels but {first} is {size} (H, W): pass '
                f'size={min(*size, *file.size)}, for instance, to bring all images to '
                f'one size'
            )
        if self._wanted is not None:
            return file.find(self._wanted)
        if len(file.bands) != len(bands):
            raise ValueError(
                f'{file.path} has {len(file.bands)} bands {file.bands} but {first} has '
                f'{len(bands)} {bands}: pass *bands* that both have, or separate them'
            )
        if file.described and file.bands != bands:
            return file.find(bands)
        return list(range(len(bands)))

    def _skip(self, index: int, error: UnreadableImageError) -> None:
        self._unreadable[index] = True
        reason = str(error).partition(': ')[2].partition('. Replace')[0]
        warnings.warn(
            f'skipped unreadable image {self.paths[index]} ({reason}); '
            f'{int(self._unreadable.sum())} of {len(self)} so far',
            stacklevel=3,
        )

    def _nothing_left(self) -> UnreadableImageError:
        return UnreadableImageError(
            f'none of the {len(self)} images of split {self.split!r} in {self.root} '
            f'can be read, the first being {self.paths[0]}: check the files'
        )

    @property
    def skipped(self) -> list[str]:
        """Paths of the images found unreadable so far, by any worker."""
        return [self.paths[i] for i in self._unreadable.nonzero().flatten().tolist()]

    def plot(
        self,
        sample: dict[str, Any],
        show_titles: bool = True,
        suptitle: str | None = None,
    ) -> Figure:
        """Plot an image in true colour if its bands are named so, else its first three.

        Args:
            sample: As returned by :meth:`__getitem__`; 'prediction' is shown too.
            show_titles: Whether to write the class over the image.
            suptitle: Title of the figure.

        Returns:
            The figure.
        """
        picture = self._picture(sample['image'])
        figure, axes = plt.subplots(figsize=(4, 4))
        axes.imshow(picture, cmap='gray' if picture.ndim == 2 else None)
        axes.axis('off')
        if show_titles:
            lines = [
                f'{key.capitalize()}: {self.classes[int(sample[key])]}'
                for key in ('label', 'prediction')
                if key in sample and self.classes
            ]
            axes.set_title('\n'.join(lines))
        if suptitle is not None:
            figure.suptitle(suptitle)
        return figure

    def _picture(self, image: Tensor) -> Any:
        unit = to_unit(image, self.value_range)
        if len(unit) < 3:
            return unit[0].numpy()
        # (C, H, W) -> (H, W, 3)
        return unit[colour_indices(self.bands, len(unit))].permute(1, 2, 0).numpy()
