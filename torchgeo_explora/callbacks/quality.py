"""Quality of the features without labels, while training runs."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from torchgeo_explora.callbacks.evaluation import (
    Evaluation,
    image_batches,
    lack_of_images,
)
from torchgeo_explora.functional import (
    alignment,
    lidar,
    neighbour_agreement,
    place_retrieval,
    rankme,
    uniformity,
    variance_share,
)

#: Side of a crop relative to the image's: the corners overlap in the middle.
_SHARE = 0.7
#: Images whose patch tokens are ranked: each costs a singular value decomposition.
_RANKED = 64
_NAMES = (
    *('rankme', 'lidar', 'alignment', 'uniformity', 'variance_8', 'neighbours'),
    *('retrieval', 'patch_rank'),
)


class LabelFreeQuality(Evaluation):
    """Measure the backbone that is kept, without labels.

    The images are evenly spaced over the training set. Each is embedded whole, and as
    five crops (the corners and the centre, 0.7 of each side), which are views of one
    place. Logged under `quality/`:

    - `rankme`: effective rank of the embeddings (Garrido et al. 2023);
    - `patch_rank`: the same for the patch tokens of an image, averaged over up to 64
      images; left out for a task without `embed_tokens`;
    - `lidar`: effective rank of what tells places apart (Thilak et al. 2024);
    - `alignment`, `uniformity`: of opposite corners, of the embeddings (Wang & Isola
      2020);
    - `variance_8`: share of the variance along the first 8 components;
    - `neighbours`: share of the 10 nearest places that two opposite corners have in
      common;
    - `retrieval`: share of corners whose nearest opposite corner is of the same place.

    A callback may use any of them as *monitor*; `EarlyStopping` finds them in every
    epoch, as with `OnlineKNN`. If the effective rank falls below half of its value at
    the start, the callback warns that features are collapsing.

    Args:
        every_n_steps: Optimizer steps between two evaluations; 0 turns the callback
            off.
        images: Largest number of training images used.
        batch_size: Images embedded at once.

    Attributes:
        history: Measures by optimizer step.
        off: Why nothing can be measured, known after `setup`; None if it can.
    """

    title = 'quality without labels'
    monitors = tuple(f'quality/{name}' for name in _NAMES)
    history: dict[int, dict[str, float]]

    def __init__(
        self, every_n_steps: int = 500, images: int = 512, batch_size: int = 128
    ) -> None:
        """Keep the settings."""
        super().__init__(every_n_steps, batch_size)
        self.images = images

    def reason_to_be_off(self, trainer: Trainer) -> str | None:
        """Return why the training images cannot be used; None if they can."""
        return lack_of_images(trainer)

    def metrics(self, measured: dict[str, float]) -> dict[str, float]:
        """Return the measures under their names."""
        return {f'quality/{name}': value for name, value in measured.items()}

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return the current measures."""
        task: Any = pl_module
        size = len(trainer.datamodule.train_dataset)  # type: ignore[attr-defined]
        every = -(-min(self.images, size) // _RANKED)
        whole, crops, ranks = [], [], []
        for batch in image_batches(
            trainer, 'train', self.images, self.batch_size, task.device
        ):
            # A user's own task may not give tokens.
            if hasattr(task, 'embed_tokens'):
                tokens = task.embed_tokens(batch)
                whole.append(tokens.pooled(task.pooling).float())
                ranks += [rankme(image) for image in tokens.patch[::every].float()]
            else:
                whole.append(task.embed(batch))
            views = [
                task.embed({**batch, 'image': view})
                for view in place_views(batch['image'])
            ]
            crops.append(torch.stack(views, dim=1))
        found = measures(torch.cat(whole), torch.cat(crops))
        if ranks:
            found['patch_rank'] = torch.stack(ranks).mean().item()
        return found

    def log_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log the result, and warn of a collapse."""
        super().log_now(trainer, pl_module)
        start, now = (values['rankme'] for values in self.ends)
        if now < start / 2:
            rank_zero_warn(
                f'the effective rank of the features fell from {start:.1f} to {now:.1f}'
                f' at step {trainer.global_step}: they are collapsing; lower base_lr,'
                ' or raise koleo_weight, and keep an earlier delta'
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the measures before and after."""
        if len(self.history) > 1:
            first, last = self.ends
            rank_zero_info(
                'quality without labels, before and after: '
                + ', '.join(f'{k} {first[k]:.4g} {last[k]:.4g}' for k in last)
            )


def place_views(image: Tensor) -> list[Tensor]:
    """Return five crops of images (..., H, W): corners clockwise, then the centre."""
    height, width = image.shape[-2:]
    h, w = round(_SHARE * height), round(_SHARE * width)
    down, right = height - h, width - w
    corners = ((0, 0), (0, right), (down, right), (down, 0), (down // 2, right // 2))
    return [image[..., top : top + h, left : left + w] for top, left in corners]


def measures(whole: Tensor, crops: Tensor) -> dict[str, float]:
    """Return the measures of `LabelFreeQuality`.

    Args:
        whole: (n, D), embeddings of the images.
        crops: (n, 5, D), embeddings of the crops of `place_views`.
    """
    first, opposite = crops[:, 0], crops[:, 2]
    values: dict[str, Any] = {
        'rankme': rankme(whole),
        'lidar': lidar(crops),
        'alignment': alignment(first, opposite),
        'uniformity': uniformity(whole),
        'variance_8': variance_share(whole, 8),
        'neighbours': neighbour_agreement(first, opposite),
        'retrieval': place_retrieval(first, opposite),
    }
    return {name: value.item() for name, value in values.items()}
