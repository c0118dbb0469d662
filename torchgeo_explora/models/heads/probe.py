"""Many linear classifiers on the same frozen features."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchgeo_explora.models.backbones.tokens import Features
from torchgeo_explora.models.heads.pooling import probe_input


class ProbeSetting(NamedTuple):
    """One classifier of the grid."""

    blocks: int
    """Number of last blocks whose tokens are used."""
    average: bool
    """Whether the mean patch token of the last block is also used."""
    base_lr: float
    """Learning rate for a batch of 256."""

    @property
    def name(self) -> str:
        """A unique name without a dot."""
        rate = f'{self.base_lr:g}'.replace('.', '_')
        return f'blocks{self.blocks}-average{int(self.average)}-lr{rate}'


class ProbeHeads(nn.Module):
    """Linear classifiers for all combinations of a few settings.

    As in DINOv2's evaluation (`eval/linear.py`), weights start at N(0, 0.01) and biases
    at 0, and each classifier has its own learning rate; see `parameter_groups`. DINOv2
    names a classifier by its rate with five decimals, so that two classifiers of its
    grid share a name and one is lost; here all are kept.

    Args:
        embed_dim: D, width of the backbone.
        classes: Number of classes.
        learning_rates: Base learning rates.
        blocks: Numbers of last blocks whose class tokens are used.
        averages: Whether the mean patch token is used.

    Raises:
        ValueError: If two classifiers would be the same.
    """

    def __init__(
        self,
        embed_dim: int,
        classes: int,
        learning_rates: Sequence[float],
        blocks: Sequence[int] = (1, 4),
        averages: Sequence[bool] = (False, True),
    ) -> None:
        """Create the classifiers."""
        super().__init__()
        grid = product(blocks, averages, learning_rates)
        self.settings = [ProbeSetting(*point) for point in grid]
        if not self.settings or len(set(self.settings)) < len(self.settings):
            raise ValueError(
                f'*learning_rates* {list(learning_rates)}, *blocks* {list(blocks)} and'
                f' *averages* {list(averages)} must each have a value, and none twice'
            )
        self.heads = nn.ModuleDict()
        for setting in self.settings:
            width = embed_dim * (setting.blocks + setting.average)
            head = nn.Linear(width, classes)
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
            self.heads[setting.name] = head

    @property
    def depth(self) -> int:
        """Number of last blocks whose features are needed."""
        return max(setting.blocks for setting in self.settings)

    def forward(self, features: Sequence[Features]) -> Tensor:
        """Return the logits of all classifiers, (heads, B, classes), in float32.

        Args:
            features: Features of the last `depth` blocks, in their order.
        """
        inputs = {
            (blocks, average): probe_input(features, blocks, average).float()
            for blocks, average in {setting[:2] for setting in self.settings}
        }
        # Autocast would round the logits, and similar rates would look the same.
        with torch.autocast(features[-1].cls.device.type, enabled=False):
            return torch.stack(
                [
                    self.heads[setting.name](inputs[setting[:2]])
                    for setting in self.settings
                ]
            )

    def parameter_groups(self, batch: int) -> list[dict[str, object]]:
        """Return a parameter group per classifier, with rate base_lr * batch / 256.

        Args:
            batch: Images per optimizer step over all devices.
        """
        return [
            {
                'params': list(self.heads[setting.name].parameters()),
                'lr': setting.base_lr * batch / 256,
            }
            for setting in self.settings
        ]
