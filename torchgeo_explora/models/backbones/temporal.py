"""SatMAE's backbone for series of images: tokens with the time they were taken."""

from collections.abc import Sequence
from os import PathLike

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor
from torchvision.models._api import WeightsEnum

from torchgeo_explora.functional import patchify, sincos_1d
from torchgeo_explora.models.backbones.coded import CodedBackbone
from torchgeo_explora.models.backbones.tokens import Tokens, check_size
from torchgeo_explora.models.heads.coded_decoders import TemporalDecoder
from torchgeo_explora.models.heads.mae_decoder import MAEDecoder, start_as_mae


class TemporalViT(CodedBackbone):
    """A ViT over a few RGB images of one place, each with its time (SatMAE).

    The tokens of the first image come first, row by row, then those of the next. Each
    carries its position in the image and the sin-cos code of year, month and hour.
    Differences from SatMAE: the series may have any length, the width of the time code
    is an argument, and the position table is trained in pre-training too.

    Reference: Cong et al., *SatMAE*, https://arxiv.org/abs/2207.08051, section 3.2.

    Args:
        image_size: Training size in pixels, one number or height and width.
        patch_size: Pixels along each side of a patch.
        embed_dim: D, width of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width of a block's hidden layer, relative to D.
        time_embed_dim: E, width of the time code, a third each for year, month and
            hour; the position takes the rest of D.
        weights: None for random weights, or as for `start_from`.

    Raises:
        FileNotFoundError: If the weights are not on disk and cannot be downloaded.
        RuntimeError: If the weights do not fit.
        ValueError: If a width or a size does not fit.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        time_embed_dim: int = 384,
        weights: WeightsEnum | PathLike[str] | str | None = None,
    ) -> None:
        """Build the patch embedding and the blocks."""
        if time_embed_dim % 6:
            raise ValueError(
                f'*time_embed_dim* {time_embed_dim} is not a multiple of 6: year, month'
                ' and hour each take a third, half sines and half cosines'
            )
        super().__init__(
            {},
            3,
            image_size,
            patch_size,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            time_embed_dim,
            'time_embed_dim',
        )
        self.patch_embed = PatchEmbed(None, patch_size, 3, embed_dim)
        start_as_mae(self.patch_embed)
        if weights:
            self.start_from(weights)

    def embed(
        self, image: Tensor, timestamps: Tensor | None = None, **metadata: Tensor
    ) -> Tokens:
        """Return the patch tokens of a series, with content and position separate.

        Args:
            image: Normalised pixels, (B, T, C, H, W).
            timestamps: (B, T, 3): year - 2002, month - 1 and hour of each image.
            **metadata: Ignored.

        Returns:
            Tokens with the grid (T, h, w).

        Raises:
            ValueError: If shapes do not fit, or timestamps are missing or out of range.
        """
        self._check_series(image)
        height, width = image.shape[-2:]
        check_size((height, width), self.patch_size)
        grid = (height // self.patch_size, width // self.patch_size)
        batch, times = image.shape[:2]
        content = self.patch_embed(image.flatten(0, 1))  # (B * T, h * w, D)
        content = content.unflatten(0, (batch, times)).flatten(1, 2)

        code = self.time_code(self._checked(timestamps, image)).unsqueeze(2)
        place = self.position(grid).unsqueeze(1)  # (1, 1, h * w, D - E)
        places = place.expand(batch, times, -1, -1)
        codes = code.expand(-1, -1, place.shape[2], -1)
        # (B, T, h * w, D) -> (B, T * h * w, D)
        position = torch.cat([places, codes], dim=-1).flatten(1, 2)
        return Tokens(content, position, (times, *grid))

    def time_code(self, timestamps: Tensor) -> Tensor:
        """Return the sin-cos code of times (B, T, 3) as (B, T, E)."""
        return sincos_1d(timestamps, self.code_dim // 3).flatten(2)

    def mae_decoder(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        channel_dim: int,
        time_dim: int,
        legacy_order: bool,
    ) -> MAEDecoder:
        """Return a new decoder whose tokens carry the code of their time."""
        return TemporalDecoder(
            self.embed_dim,
            self.in_channels,
            self.patch_size,
            self.grid,
            dim,
            depth,
            heads,
            mlp_ratio,
            time_dim,
        )

    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of a series as (B, N, P), in the order of `embed`.

        Inside a patch the order is row, column, channel, as in MAE.
        """
        self._check_series(image)
        rows = patchify(image.flatten(0, 1), self.patch_size)
        return rows.unflatten(0, image.shape[:2]).flatten(1, 2)

    def _check_series(self, image: Tensor) -> None:
        if image.ndim != 5 or image.shape[2] != self.in_channels:
            raise ValueError(
                f'image has shape {tuple(image.shape)}, expected a series'
                f' (B, T, C, H, W) with C = {self.in_channels}: for one image per'
                ' place, add the axis T'
            )

    def _checked(self, timestamps: Tensor | None, image: Tensor) -> Tensor:
        expected = (*image.shape[:2], 3)
        what = (
            f'*timestamps* must be {expected}, year - 2002, month - 1 (0 to 11) and'
            ' hour (0 to 23) of each image'
        )
        if timestamps is None:
            raise ValueError(f'{what}; the batch has no such tensor')
        if timestamps.shape != expected:
            raise ValueError(f'{what}; their shape is {tuple(timestamps.shape)}')
        times = timestamps.double()  # small integer types do not hold the bounds
        low, high = times.new_tensor([[-200, 0, 0], [200, 11, 23]])
        # Written so that NaN is refused too.
        fits = (times >= low) & (times <= high)
        if not fits.all():
            wrong = timestamps[~fits.all(-1)][0].tolist()
            raise ValueError(f'{what}; among them is {wrong}')
        return timestamps
