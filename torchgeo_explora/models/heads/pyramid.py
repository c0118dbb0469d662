"""Feature maps of several scales from the single scale of a plain ViT."""

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn


class Rescale(nn.Sequential):
    """Resize a feature map (B, D, h, w) by a factor of 4, 2, 1 or 1/2.

    As in ViTDet's simple feature pyramid (Li et al., https://arxiv.org/abs/2203.16527),
    transposed convolutions of stride 2 enlarge and pooling reduces.

    Args:
        dim: D, channels of the map.
        factor: 4, 2, 1 or 0.5.
        channels: Channels of the result; if None, the number that the layers give.
    """

    def __init__(self, dim: int, factor: float, channels: int | None = None) -> None:
        """Create the layers.

        Raises:
            ValueError: If the factor is not one of these.
        """
        layers: list[nn.Module] = []
        width = dim
        if factor not in (4, 2, 1, 0.5):
            raise ValueError(f'*factor* is {factor}: choose 4, 2, 1 or 0.5')
        if factor == 0.5:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        if factor > 1:
            width = dim // 2
            layers.append(nn.ConvTranspose2d(dim, width, 2, 2))
        if factor == 4:
            layers += [
                LayerNorm2d(width),
                nn.GELU(),
                nn.ConvTranspose2d(width, width // 2, 2, 2),
            ]
            width = width // 2
        if channels is not None:
            layers += [
                nn.Conv2d(width, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            ]
        super().__init__(*layers)
        self.channels = channels or width


class SimplePyramid(nn.Module):
    """ViTDet's feature pyramid: the last feature map at four scales.

    Args:
        dim: D, channels of the map.
        channels: Channels of each level.
    """

    def __init__(self, dim: int, channels: int = 256) -> None:
        """Create the levels."""
        super().__init__()
        self.levels = nn.ModuleList(
            Rescale(dim, factor, channels) for factor in (4, 2, 1, 0.5)
        )

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Return maps of (B, D, h, w) at 4, 2, 1 and 1/2 times its resolution."""
        return [level(tokens) for level in self.levels]
