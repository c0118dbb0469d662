"""Bright squares on a dark ground, with masks and boxes."""

import torch
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datamodules.utils import collate_fn_detection


def draw(count, side=32, mixed=False):
    """Return images (3, H, W) of 0 to 255, masks and boxes."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(count):
        width = side + 8 * (index % 2) * mixed
        image = torch.randint(0, 60, (3, side, width), generator=generator).float()
        mask = torch.zeros(side, width, dtype=torch.long)
        top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
        size = side // 4 + int(torch.randint(0, side // 4, (), generator=generator))
        image[:, top : top + size, left : left + size] += 180
        mask[top : top + size, left : left + size] = 1
        box = torch.tensor([[left, top, left + size, top + size]]).float()
        samples.append({'image': image, 'mask': mask, 'bbox_xyxy': box})
    return samples


class Squares(NonGeoDataModule):
    """The same squares to train, validate, test and predict."""

    def __init__(
        self, batch_size: int = 4, count: int = 8, side: int = 32, mixed: bool = False
    ) -> None:
        super().__init__(object, batch_size)
        self.samples = draw(count, side, mixed)
        self.mean, self.std = torch.tensor(0.0), torch.tensor(255.0)

    def setup(self, stage):
        for split in ('train', 'val', 'test', 'predict'):
            setattr(self, f'{split}_dataset', self.samples)


class SquareMasks(Squares):
    """Without boxes."""

    def setup(self, stage):
        self.samples = [
            {k: v for k, v in sample.items() if k != 'bbox_xyxy'}
            for sample in self.samples
        ]
        super().setup(stage)


class ShiftedMasks(SquareMasks):
    """Classes from 1 on and 0 for padding, as in TorchGeo's SpaceNet."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch['mask'] = batch['mask'] + 1
        return super().on_after_batch_transfer(batch, dataloader_idx)


class SquareBoxes(Squares):
    """Batches as TorchGeo's detection has them."""

    def __init__(
        self, batch_size: int = 4, count: int = 8, side: int = 32, mixed: bool = False
    ) -> None:
        super().__init__(batch_size, count, side, mixed)
        self.collate_fn = collate_fn_detection
