"""The projection head of DINOv2, which only pre-training needs."""

from collections.abc import MutableMapping
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, empty, nn, ones

# Names in DINOv2's files, in both of torch's spellings of weight normalisation.
_PUBLISHED = {
    'last_layer.weight_g': 'prototypes.magnitude',
    'last_layer.weight_v': 'prototypes.direction',
    'last_layer.parametrizations.weight.original0': 'prototypes.magnitude',
    'last_layer.parametrizations.weight.original1': 'prototypes.direction',
    'mlp.weight': 'mlp.0.weight',
    'mlp.bias': 'mlp.0.bias',
}


class Prototypes(nn.Module):
    """Linear layer without bias whose rows are magnitude times unit direction.

    torch's own weight normalisation uses a hook that cannot be copied; here both
    tensors are plain parameters. As in DINOv2, but unlike DINO, the magnitudes are
    trained.

    Args:
        in_dim: Width of the input.
        out_dim: K, number of prototypes.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        """Start with the random directions of `nn.Linear` and magnitude 1."""
        super().__init__()
        self.magnitude = nn.Parameter(ones(out_dim, 1))
        self.direction = nn.Parameter(empty(out_dim, in_dim))
        nn.init.kaiming_uniform_(self.direction, a=5**0.5)

    def weight(self) -> Tensor:
        """Return the rows, (K, in_dim)."""
        return (
            self.magnitude / self.direction.norm(dim=1, keepdim=True) * self.direction
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., K) of bottleneck vectors (..., in_dim)."""
        return F.linear(x, self.weight())


class DINOHead(nn.Module):
    """Projection head of DINOv2: MLP, unit vector, prototypes.

    Weights can be loaded under DINOv2's names or the module's own. The state dict lists
    the linear layers from input to prototypes. Reference:
    https://arxiv.org/abs/2304.07193.

    Args:
        in_dim: D, width of the tokens.
        out_dim: K, number of prototypes.
        hidden_dim: Width inside the MLP.
        bottleneck_dim: Width of the unit vector before the prototypes.
        layers: Linear layers of the MLP, at least 1.

    Raises:
        ValueError: If *layers* is below 1.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
    ) -> None:
        """Start with truncated normal weights (0.02) and zero biases in the MLP."""
        super().__init__()
        if layers < 1:
            raise ValueError(f'*layers* is {layers}: the head needs at least 1')
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        self.mlp = nn.Sequential()
        for index, (width, following) in enumerate(pairwise(widths)):
            if index:
                self.mlp.append(nn.GELU())
            layer = nn.Linear(width, following)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
            self.mlp.append(layer)
        self.prototypes = Prototypes(bottleneck_dim, out_dim)
        self.register_load_state_dict_pre_hook(_rename)

    def bottleneck(self, x: Tensor) -> Tensor:
        """Return unit vectors (..., bottleneck_dim) in float32 of tokens (..., D)."""
        # Half precision cannot represent eps, and squares of small values vanish.
        return F.normalize(self.mlp(x).float(), dim=-1, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., K) of tokens (..., D) after the backbone's final norm.

        It is `prototypes(bottleneck(x))`. A loss that never needs all logits at once
        uses `bottleneck(x)` and `prototypes.weight()`.
        """
        return self.prototypes(self.bottleneck(x))


def _rename(
    module: nn.Module, state: MutableMapping[str, Any], prefix: str, *args: Any
) -> None:
    for published, name in _PUBLISHED.items():
        if prefix + published in state:
            state[prefix + name] = state.pop(prefix + published)
