"""SatMAE's backbone for multi-spectral images: tokens of spectral groups."""

from collections.abc import Sequence
from os import PathLike

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.functional import patchify, sincos_1d
from torchgeo_explora.models.backbones.coded import CodedBackbone
from torchgeo_explora.models.backbones.tokens import Tokens, check_size
from torchgeo_explora.models.heads.coded_decoders import GroupChannelDecoder
from torchgeo_explora.models.heads.mae_decoder import MAEDecoder, start_as_mae

#: The bands of Sentinel-2 at 10 m and 20 m, in the order of their wavelength.
SATMAE_BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
#: SatMAE's groups: visible and near infrared at 10 m, red edge, short-wave infrared.
SATMAE_GROUPS = (
    ('B02', 'B03', 'B04', 'B08'),
    ('B05', 'B06', 'B07', 'B8A'),
    ('B11', 'B12'),
)


class GroupChannelViT(CodedBackbone):
    """A ViT that embeds every patch once per group of spectral bands (SatMAE).

    The tokens of the first group come first, row by row, then those of the next. Each
    carries its position in the image and the code of its group. Differences from
    SatMAE: groups name bands, position and channel code are parameters in pre-training
    too, and the class token gets its row of the position table, which is zero in
    SatMAE's pre-training weights.

    Pixels are expected in [0, 1] without further normalisation, as in SatMAE.

    Reference: Cong et al., *SatMAE*, https://arxiv.org/abs/2207.08051, section 3.3.

    Args:
        bands: Names of the image's channels, in their order. By default the 10 of 13
            Sentinel-2 bands that SatMAE uses.
        groups: Names of the bands of each group; every band is in exactly one.
        image_size: Training size in pixels, one number or height and width.
        patch_size: Pixels along each side of a patch.
        embed_dim: D, width of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width of a block's hidden layer, relative to D.
        channel_embed_dim: E, width of the channel code; the position takes the rest of
            D.
        weights: None for random weights, or as for `start_from`.

    Attributes:
        group_indices: For each group, the channels of the image that it takes.
        mean: Mean of the images that the base was trained on: 0 for every channel.
        std: Standard deviation of these images: 1 for every channel.

    Raises:
        FileNotFoundError: If the weights are not on disk and cannot be downloaded.
        RuntimeError: If the weights do not fit.
        ValueError: If a band is unknown, repeated or in no group, or a size does not
            fit.
    """

    bands: tuple[str, ...]
    own = ('patch_embed', 'pos_embed', 'channel_embed')

    def __init__(
        self,
        bands: Sequence[str] = SATMAE_BANDS,
        groups: Sequence[Sequence[str]] = SATMAE_GROUPS,
        image_size: int | Sequence[int] = 96,
        patch_size: int = 8,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        channel_embed_dim: int = 256,
        weights: WeightsEnum | PathLike[str] | str | None = None,
    ) -> None:
        """Build the embeddings, the codes and the blocks."""
        names, members = list(bands), [list(group) for group in groups]
        _check_groups(names, members)
        super().__init__(
            {'bands': names, 'groups': members},
            len(names),
            image_size,
            patch_size,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            channel_embed_dim,
            'channel_embed_dim',
        )
        self.bands = tuple(names)
        self.groups = tuple(tuple(group) for group in members)
        self.group_indices = tuple(
            tuple(names.index(band) for band in group) for group in members
        )
        self.layers = len(members)
        self.mean = (0.0,) * len(names)
        self.std = (1.0,) * len(names)
        self.patch_embed = nn.ModuleList(
            PatchEmbed(None, patch_size, len(group), embed_dim) for group in members
        )
        start_as_mae(self.patch_embed)
        codes = sincos_1d(torch.arange(len(members)), channel_embed_dim)
        self.channel_embed = nn.Parameter(codes[None])
        if weights:
            self.start_from(weights)

    def embed(self, image: Tensor, **metadata: Tensor) -> Tokens:
        """Return the patch tokens of an image, with content and position separate.

        Args:
            image: Pixels in [0, 1], (B, C, H, W), with the channels of `bands`.
            **metadata: Ignored.

        Returns:
            Tokens with the grid (groups, h, w).

        Raises:
            ValueError: If the number of channels or the image size does not fit.
        """
        self._check_channels(image)
        height, width = image.shape[-2:]
        check_size((height, width), self.patch_size)
        grid = (height // self.patch_size, width // self.patch_size)
        content = [
            layer(part)
            for layer, part in zip(self.patch_embed, self._parts(image), strict=True)
        ]
        place = self.position(grid).unsqueeze(1)  # (1, 1, h * w, D - E)
        code = self.channel_embed.unsqueeze(2)  # (1, G, 1, E)
        places = place.expand(-1, len(self.groups), -1, -1)
        codes = code.expand(-1, -1, place.shape[2], -1)
        # (1, G, h * w, D) -> (1, G * h * w, D)
        position = torch.cat([places, codes], dim=-1).flatten(1, 2)
        return Tokens(torch.cat(content, dim=1), position, (len(self.groups), *grid))

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
        """Return a new decoder with a prediction layer for each group."""
        return GroupChannelDecoder(
            self.embed_dim,
            self.group_indices,
            self.patch_size,
            self.grid,
            dim,
            depth,
            heads,
            mlp_ratio,
            channel_dim,
            legacy_order,
        )

    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of an image as (B, N, P), in the order of `embed`.

        Inside a patch, the order is channel (of the group), row, column, as in SatMAE.
        P is that of the largest group; smaller groups are filled up with NaN, which
        `functional.masked_mse` ignores.
        """
        self._check_channels(image)
        pixels = [patchify(part, self.patch_size, 'chw') for part in self._parts(image)]
        largest = max(rows.shape[-1] for rows in pixels)
        return torch.cat(
            [
                nn.functional.pad(
                    rows, (0, largest - rows.shape[-1]), value=float('nan')
                )
                for rows in pixels
            ],
            dim=1,
        )

    def _parts(self, image: Tensor) -> list[Tensor]:
        """Return the image of each group, (B, bands of the group, H, W)."""
        channels = image.unbind(1)
        return [
            torch.stack([channels[i] for i in group], dim=1)
            for group in self.group_indices
        ]

    def _check_channels(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f'image has shape {tuple(image.shape)}, expected (B, C, H, W) with the'
                f' C = {self.in_channels} bands {", ".join(self.bands)}: select them by'
                ' name'
            )


def _check_groups(bands: list[str], groups: list[list[str]]) -> None:
    """Raise unless every band is in exactly one group."""
    if len(set(bands)) != len(bands):
        raise ValueError(f'*bands* names a band twice: {_repeated(bands)} in {bands}')
    if not groups or not all(groups):
        raise ValueError(f'*groups* has a group without bands: {groups}')
    grouped = [band for group in groups for band in group]
    if unknown := [band for band in grouped if band not in bands]:
        raise ValueError(
            f'*groups* names {", ".join(unknown)}, not among the *bands*'
            f' {", ".join(bands)}: add to *bands* or remove'
        )
    if len(set(grouped)) != len(grouped):
        raise ValueError(
            f'*groups* names a band twice: {_repeated(grouped)}; a band belongs to one'
            ' group'
        )
    if lost := [band for band in bands if band not in grouped]:
        raise ValueError(
            f'*bands* has {", ".join(lost)}, in none of the *groups*: add to a group or'
            ' remove'
        )


def _repeated(names: list[str]) -> str:
    return ', '.join(sorted({name for name in names if names.count(name) > 1}))
