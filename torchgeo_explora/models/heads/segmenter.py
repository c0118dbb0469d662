"""Decoders that classify every pixel from the feature maps of four blocks."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from torchgeo_explora.models.heads.pyramid import Rescale


class SegmentationHead(nn.Module):
    """UPerNet, DPT or a linear layer on four feature maps of a plain ViT.

    UPerNet and DPT are the decoders of segmentation_models_pytorch, whose own models do
    not accept patches of 14 pixels, and do not combine UPerNet with a ViT. Here, for
    any patch size, the maps are rescaled to four resolutions relative to it, and the
    result is resized to the image.

    Args:
        embed_dim: D, channels of the maps.
        classes: Number of classes.
        decoder: 'upernet', 'dpt' or 'linear'. 'linear' is DINOv2's: a batch norm and a
            1 x 1 convolution on the concatenated maps.
        channels: Width of UPerNet and DPT.

    Raises:
        ValueError: If *decoder* is unknown.
    """

    def __init__(
        self,
        embed_dim: int,
        classes: int,
        decoder: Literal['upernet', 'dpt', 'linear'] = 'upernet',
        channels: int = 256,
    ) -> None:
        """Create the decoder."""
        super().__init__()
        self.kind = decoder
        width = channels
        self.decoder: nn.Module
        self.scales = nn.ModuleList()
        if decoder == 'linear':
            width = 4 * embed_dim
            self.decoder = nn.BatchNorm2d(width)
        elif decoder == 'upernet':
            self.scales.extend(Rescale(embed_dim, f) for f in (4, 2, 1, 0.5))
            # The decoder drops the first two maps, which a ViT does not have.
            widths = [0, 0, *(scale.channels for scale in self.scales)]
            self.decoder = UPerNetDecoder(widths, 5, channels)
        elif decoder == 'dpt':
            self.decoder = DPTDecoder(
                encoder_out_channels=[embed_dim] * 4,
                # Whatever the patch size, 16 gives ratios of 4, 2, 1 and 1/2.
                encoder_output_strides=[16] * 4,
                encoder_has_prefix_tokens=False,
                readout='ignore',
                intermediate_channels=[channels] * 4,
                fusion_channels=channels,
            )
        else:
            raise ValueError(
                f"*decoder* is {decoder!r}: choose 'upernet', 'dpt' or 'linear'"
            )
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return logits, (B, classes, H, W).

        Args:
            maps: Four maps (B, D, h, w), in the order of the blocks.
            size: (H, W).

        Raises:
            ValueError: If DPT cannot halve the maps.
        """
        if self.kind == 'linear':
            x = self.decoder(torch.cat([*maps], dim=1))
        elif self.kind == 'upernet':
            scaled = [
                scale(tokens) for scale, tokens in zip(self.scales, maps, strict=True)
            ]
            x = self.decoder([None, None, *scaled])
        else:
            grid = tuple(maps[0].shape[-2:])
            if any(side % 2 for side in grid):
                raise ValueError(
                    f'DPT halves the grid of patches, which is {grid}: choose an'
                    ' *image_size* with an even number of patches'
                )
            x = self.decoder(list(maps), [None] * 4)
        logits = self.classify(x)
        return F.interpolate(
            logits, size=tuple(size), mode='bilinear', align_corners=False
        )
