"""Multi-crop of a batch on the device, and image by image with PIL and torchvision."""

import os
import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from torchgeo_explora.augment import IMAGENET_MEAN, IMAGENET_STD, MultiCrop

BATCH, SIDE = 32, 256


def batched_views(tiny: bool) -> dict[str, Any]:
    """Measure `MultiCrop` with all of torch's threads."""
    batches = 1 if tiny else 5
    image = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    crops = MultiCrop()
    crops(image[:2].float().div_(255))
    began = time.perf_counter()
    for _ in range(batches):
        crops(image.float().div_(255))
    return _rate(BATCH * batches, began) | {'threads': torch.get_num_threads()}


def pil_views(tiny: bool) -> dict[str, Any]:
    """Measure the same laws, image by image, in one loader process per core."""
    images = 4 if tiny else 3 * BATCH
    workers = len(os.sched_getaffinity(0))
    loader = DataLoader(
        PILViews(images), batch_size=2, num_workers=workers, persistent_workers=True
    )
    for _ in loader:  # the processes start
        break
    began = time.perf_counter()
    for _ in loader:
        pass
    return _rate(images, began) | {'processes': workers}


def _rate(images: int, began: float) -> dict[str, Any]:
    seconds = time.perf_counter() - began
    return {'images_per_second': round(images / seconds, 2)}


class PILViews(Dataset[list[Tensor]]):
    """DINOv2's views of noise, 2 of 224 and 8 of 98 pixels.

    Args:
        images: How many there are.
    """

    def __init__(self, images: int) -> None:
        """Build the chains, with the blur that DINOv2 really applies."""
        self.images = images
        self.image = Image.fromarray(
            torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8).numpy()
        )
        self.chains = [
            self._chain(224, (0.32, 1.0), 0.0, 0.0),
            self._chain(224, (0.32, 1.0), 0.9, 0.2),
            *[self._chain(98, (0.05, 0.32), 0.5, 0.0)] * 8,
        ]

    @staticmethod
    def _chain(
        size: int, scale: tuple[float, float], blur: float, solarize: float
    ) -> v2.Compose:
        jitter = v2.ColorJitter(0.4, 0.4, 0.2, 0.1)
        smooth = v2.GaussianBlur(9, (0.1, 2.0))
        return v2.Compose(
            [
                v2.RandomResizedCrop(
                    size, scale, interpolation=v2.InterpolationMode.BICUBIC
                ),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([jitter], 0.8),
                v2.RandomGrayscale(0.2),
                *([v2.RandomApply([smooth], blur)] if blur else []),
                *([v2.RandomSolarize(128, solarize)] if solarize else []),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return self.images

    def __getitem__(self, index: int) -> list[Tensor]:
        """Return the views of one image."""
        return [chain(self.image) for chain in self.chains]
