"""Multi-crop of a batch on the device, or image by image with PIL and torchvision."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from torchgeo_explora.augment import IMAGENET_MEAN, IMAGENET_STD, MultiCrop

BATCH, SIDE = 32, 256
CPU = torch.device('cpu')


def run(
    record: dict[str, Any],
    device: torch.device,
    tiny: bool,
    left: Callable[[], float],
    save: Callable[[], None],
) -> None:
    """Fill the part of the GPU benchmark: arguments as in `steps.run`."""
    record['what'] = (
        '2 views of 224 and 8 of 98 pixels of 256-pixel images: a batch of 128 on the'
        ' device, and PIL and torchvision in 2 processes, and in one per core'
    )
    record['batched'] = batched_views(tiny, device, 4 * BATCH)
    save()
    record['pil, 2 processes'] = pil_views(tiny, 2)
    save()
    record['pil, one process per core'] = pil_views(tiny)


def batched_views(
    tiny: bool, device: torch.device = CPU, batch: int = BATCH
) -> dict[str, Any]:
    """Measure `MultiCrop`, on a CPU with all of torch's threads.

    Args:
        tiny: One batch only.
        device: Where the images are.
        batch: Images at a time.
    """
    batches = 1 if tiny else 5
    image = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
    image = image.to(device)
    crops = MultiCrop().to(device)
    # On a GPU the first batches also choose kernels and fill the allocator.
    for start in (image[:2],) if device.type == 'cpu' else (image, image):
        crops(start.float().div_(255))
    _wait(device)
    began = time.perf_counter()
    for _ in range(batches):
        crops(image.float().div_(255))
    _wait(device)
    return _rate(batch * batches, began) | {'threads': torch.get_num_threads()}


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def pil_views(tiny: bool, processes: int | None = None) -> dict[str, Any]:
    """Measure the same transforms, image by image, in loader processes.

    Args:
        tiny: Four images only.
        processes: One per core if None.
    """
    workers = processes or len(os.sched_getaffinity(0))
    # Each process gets the same number on a machine with many cores as with two.
    images = 4 if tiny else max(3 * BATCH, 16 * workers)
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
        images: Number of images.
    """

    def __init__(self, images: int) -> None:
        """Build the transforms, with the blur that DINOv2 really applies."""
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
