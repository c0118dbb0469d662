"""The base of data sets of files: samples by number, and unreadable files."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset

from torchgeo_explora.datasets.pixels.figure import plot_image
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.datasets.pixels.scaling import ValueRange, unused_range

# Headers that are read at the start: to know what most images have, and with
# *on_error* 'skip' to find those that do not fit.
_FEW_LOOKS = 32
_MANY_LOOKS = 20_000

type OnError = Literal['raise', 'skip']
type Transform = Callable[[dict[str, Any]], dict[str, Any]]


class Reader(Protocol):
    """Reads images that must fit each other."""

    def header(self, path: str) -> Any:
        """Return what the header of a file says."""

    def choose(self, headers: Sequence[Any]) -> None:
        """Take what most files have."""

    def check(self, header: Any) -> Any:
        """Raise `UnfitImageError` if a file differs."""


class NoSamplesError(DatasetNotFoundError):
    """A data set, or a split of it, without samples."""

    def __init__(self, message: str) -> None:
        """Say what was expected, and where."""
        FileNotFoundError.__init__(self, message)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise if an argument is not one of its choices.

    Raises:
        ValueError: If *value* is not among *choices*.
    """
    if value not in choices:
        raise ValueError(f'*{name}* must be one of {tuple(choices)}, not {value!r}')


def check_side(size: int | None) -> None:
    """Raise if the side of images is neither a positive number of pixels nor None.

    Raises:
        ValueError: If *size* is below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f'*size* must be a positive number of pixels, not {size}')


def _advised(error: UnreadableImageError) -> UnreadableImageError:
    """Return an error that also says what *on_error* can do.

    The code that reads a single image cannot say so, since not every caller has this
    argument.
    """
    return type(error)(f"{error}, or pass on_error='skip' to continue without it")


class TableDataset(NonGeoDataset):
    """Samples by number, each of one file or of a group of files.

    A subclass reads a sample in `read` and raises `UnreadableImageError` if it cannot.

    Args:
        size: Number of samples.
        what: The data set in words, for errors.
        on_error: 'raise' stops at a file that is unreadable or does not fit the others;
            'skip' adds it to `skipped` and returns the next sample instead. Only the
            first one causes a warning.
        transforms: Applied to each sample.
    """

    #: Class names in the order of the labels; empty without labels.
    classes: Sequence[str] = ()

    def __init__(
        self, size: int, what: str, on_error: OnError, transforms: Transform | None
    ) -> None:
        """Start without unreadable samples."""
        check_choice('on_error', on_error, ('raise', 'skip'))
        if not size:
            raise NoSamplesError(f'{what} has no sample')
        self.on_error = on_error
        self.transforms = transforms
        self._what = what
        # In shared memory, so that all workers know what one finds unreadable.
        self._unreadable = torch.zeros(size, dtype=torch.bool)
        self._unreadable.share_memory_()
        self._told = False

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Label by class name."""
        return {name: label for label, name in enumerate(self.classes)}

    @abstractmethod
    def read(self, index: int) -> dict[str, Any]:
        """Return a sample, without `index`."""

    def __len__(self) -> int:
        """Return the number of samples, unreadable ones included."""
        return len(self._unreadable)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Args:
            index: From 0, or from the end if negative.

        Returns:
            The keys of `read`, and `index` (0-d long), that of the sample returned.

        Raises:
            IndexError: If *index* is out of range.
            UnreadableImageError: If the sample cannot be read and *on_error* is
                'raise', or if none can.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} is out of range for {len(self)} samples')
        for step in range(len(self)):
            found = (index + step) % len(self)
            if self._unreadable[found]:
                continue
            try:
                sample = self.read(found)
            except UnreadableImageError as error:
                if self.on_error == 'raise':
                    raise _advised(error) from error
                self._skip(found, error)
                continue
            sample['index'] = torch.tensor(found)
            return sample if self.transforms is None else self.transforms(sample)
        raise self._nothing_left()

    def settle(self, reader: Reader, path: Callable[[int], str]) -> None:
        """Let a reader take what most images have, judging by the headers of some.

        With *on_error* 'skip', images whose headers do not fit are left out at once.

        Args:
            reader: Reads the images.
            path: Returns the path of a sample's image.

        Raises:
            UnreadableImageError: If the first image cannot be read and *on_error* is
                'raise', or if none can.
            ValueError: If images of the most common kind lack a band, or have a type
                without a usual range.
        """
        strict = self.on_error == 'raise'
        count = min(len(self), _FEW_LOOKS if strict else _MANY_LOOKS)
        chosen = [i * len(self) // count for i in range(count)]

        def look(index: int) -> Any:
            try:
                return reader.header(path(index))
            except (UnreadableImageError, ValueError) as error:
                return error

        # Threads, because opening files means waiting for disks.
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(look, chosen))
        if strict and isinstance(found[0], UnreadableImageError):
            raise _advised(found[0]) from found[0]
        if strict and isinstance(found[0], Exception):
            raise found[0]
        headers = [header for header in found if not isinstance(header, Exception)]
        if not headers:
            raise self._nothing_left() from found[0]
        reader.choose(headers)
        if strict:
            return
        wrong = {}
        for index, header in zip(chosen, found, strict=True):
            try:
                if isinstance(header, Exception):
                    raise header
                reader.check(header)
            except (UnreadableImageError, ValueError) as error:
                wrong[index] = error
        if wrong:
            self._unreadable[list(wrong)] = True
            self._tell(*next(iter(wrong.items())))

    def warn_of_dark_images(self, value_range: ValueRange) -> None:
        """Warn if a few images use almost none of a range that may be wrong.

        Args:
            value_range: The (low, high) that is given, or usual for the type.
        """
        ends = []
        for index in {0, len(self) // 2, len(self) - 1}:
            try:
                pixels = self.read(index)['image'].flatten(1)
            except (UnreadableImageError, ValueError):
                continue
            ends.append(torch.stack([pixels.amin(1), pixels.amax(1)]))
        if not ends:
            return
        lowest, highest = torch.stack(ends).unbind(1)
        if text := unused_range(lowest.amin(0), highest.amax(0), value_range):
            warnings.warn(f'the images of {self._what} {text}', stacklevel=4)

    def _nothing_left(self) -> UnreadableImageError:
        return UnreadableImageError(
            f'none of the {len(self)} samples of {self._what} can be read: check the'
            f' files'
        )

    def _skip(self, index: int, error: Exception) -> None:
        self._unreadable[index] = True
        # One warning in each process: a folder may have thousands of such files.
        if not self._told:
            self._told = True
            self._tell(index, error)

    def _tell(self, index: int, error: Exception) -> None:
        warnings.warn(
            f'skipped sample {index}: {str(error).partition(". Replace")[0]};'
            f' {int(self._unreadable.sum())} of {len(self)} so far, others are only'
            f' counted',
            stacklevel=4,
        )

    def sum_up(self) -> str:
        """Say how many samples were left out, '' if none were."""
        numbers = self.skipped
        if not numbers:
            return ''
        names = ', '.join(map(str, numbers[:5])) + (', ...' if numbers[5:] else '')
        return (
            f'{len(numbers)} of the {len(self)} samples of {self._what} were left out,'
            f' because they cannot be read or do not fit the others: numbers {names}'
        )

    @property
    def skipped(self) -> list[int]:
        """Indices of the samples that a worker has found unreadable so far."""
        return self._unreadable.nonzero().flatten().tolist()

    def true_colour(self, image: Tensor) -> Tensor:
        """Return red, green and blue in [0, 1], or one band of gray.

        Args:
            image: Image of a sample, (C, H, W) or (T, C, H, W).

        Raises:
            RGBBandsMissingError: If a band is missing.
        """
        return image / 255

    def plot(
        self,
        sample: dict[str, Any],
        show_titles: bool = True,
        suptitle: str | None = None,
    ) -> Figure:
        """Plot a sample in true colour: an image with its boxes, or a series.

        Args:
            sample: As returned by indexing; 'prediction' is shown too.
            show_titles: Whether to write the class over the first image.
            suptitle: Title of the figure.

        Returns:
            The figure.

        Raises:
            RGBBandsMissingError: If a band of true colour is missing.
        """
        unit = self.true_colour(sample['image'])
        return plot_image(unit, sample, self.classes, show_titles, suptitle)
