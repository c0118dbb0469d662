"""Predictions in parts, so that they can be resumed and shared."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from torchgeo_explora.datamodules.splits import SplitDataModule


class Parts(Dataset[dict[str, Any]]):
    """A data set whose samples are the batches of another, in order.

    The contents of a part depend neither on which parts are done nor on how many
    processes share the work.

    Args:
        dataset: Samples with their `index`. A sample that stands in for an unreadable
            one is left out, and so is one whose `no_data` share is 1.
        size: Samples in a part.
        collate: Makes a batch of them.
        skip: Returns the numbers of the parts that need not be read.
        share: (i, n): read only parts i, i + n, i + 2n and so on, with i from 0.
    """

    def __init__(
        self,
        dataset: Any,
        size: int,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        skip: Callable[[], set[int]] = set,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Number the parts that are left."""
        self.dataset, self.size, self.collate = dataset, size, collate
        done = skip()
        mine = range(share[0], count_parts(dataset, size), share[1])
        self.numbers = [number for number in mine if number not in done]
        if not self.numbers:
            # Without any part there would be no prediction, and so no result.
            self.numbers = [*mine[-1:]] or [0]

    def __len__(self) -> int:
        """Return the number of parts to read."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a batch with `part`, its number, and `kept`, (B,) bool.

        If no sample of a part is kept, the batch has one sample, with `kept` False.
        """
        number = self.numbers[index]
        start = number * self.size
        wanted = range(start, min(start + self.size, len(self.dataset)))
        samples = [(place, self.dataset[place]) for place in wanted]
        kept = [
            sample
            for place, sample in samples
            if int(sample['index']) == place and float(sample.get('no_data', 0)) < 1
        ]
        batch = self.collate(kept or [samples[0][1]])
        flags = torch.ones(len(kept), dtype=torch.bool)
        return {
            **batch,
            'part': torch.tensor(number),
            'kept': flags if kept else torch.zeros(1, dtype=torch.bool),
        }


def count_parts(dataset: Any, size: int) -> int:
    """Return how many parts of *size* samples a data set has."""
    return -(-len(dataset) // size)


class PartsDataModule(SplitDataModule):
    """A data module whose predictions are made in parts of one batch each.

    Attributes:
        finished: Returns the numbers of finished parts; set by the writer.
        share: (i, n): this process predicts parts i, i + n, i + 2n and so on, with i
            from 0. For processes that Lightning did not start together.
    """

    finished: Callable[[], set[int]] = staticmethod(set)
    share: tuple[int, int] = (0, 1)

    @property
    def parts(self) -> Sequence[int]:
        """Numbers of all parts of the prediction."""
        return range(count_parts(self.predict_dataset, self.batch_size))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the parts that are not finished."""
        parts = Parts(
            self._valid_attribute('predict_dataset', 'dataset'),
            self._valid_attribute('predict_batch_size', 'batch_size'),
            self.collate_fn,
            self.finished,
            self.share,
        )
        return DataLoader(
            parts,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
        )
