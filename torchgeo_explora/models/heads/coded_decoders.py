"""SatMAE's decoders, for spectral groups and for series of images."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchgeo_explora.functional import patch_statistics, sincos_1d, unpatchify
from torchgeo_explora.models.heads.mae_decoder import MAEDecoder, start_as_mae


class GroupChannelDecoder(MAEDecoder):
    """Decoder of SatMAE's group-channel model: one prediction layer per group.

    Each token carries a channel code after its position. The class token has its own
    code, the last row. All rows of pixels are as long as those of the largest group,
    with zeros for the bands that a smaller group lacks.

    Difference from SatMAE: the tokens of a group predict the bands of that group.
    *legacy_order* restores the published behaviour, which compares predictions ordered
    by group with bands in image order; see docs/group_channel_order.md.

    Reference: Cong et al., *SatMAE*, https://arxiv.org/abs/2207.08051, section 3.3.

    Args:
        embed_dim: As for `MAEDecoder`, like all arguments that are not listed.
        groups: Channels of the image that belong to each group.
        channel_dim: Width of the channel code.
        legacy_order: Whether to decode bands in SatMAE's published order.

    Raises:
        ValueError: If the widths do not fit together.
    """

    order: Tensor
    slots: Tensor

    def __init__(
        self,
        embed_dim: int,
        groups: Sequence[Sequence[int]],
        patch_size: int,
        grid: tuple[int, int],
        dim: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        channel_dim: int = 128,
        legacy_order: bool = False,
    ) -> None:
        """Build the prediction layers, and the tables between bands and tokens."""
        if channel_dim % 2:
            raise ValueError(
                f'*decoder_channel_dim* {channel_dim} is odd, but half of the code are'
                ' sines and half cosines: choose an even number'
            )
        super().__init__(
            embed_dim, 1, patch_size, grid, dim, depth, heads, mlp_ratio, channel_dim
        )
        self.legacy_order = legacy_order
        self.groups = tuple(tuple(group) for group in groups)
        self.pred = nn.ModuleList(
            nn.Linear(dim, len(group) * patch_size**2) for group in groups
        )
        start_as_mae(self.pred)
        codes = sincos_1d(torch.arange(len(groups) + 1), channel_dim)[None]
        self.channel_embed = nn.Parameter(codes, requires_grad=False)

        channels = [channel for group in groups for channel in group]
        largest = max(map(len, groups))
        # The joined outputs of all layers are `channels` and a blank. A group takes its
        # own outputs; in the published order, those at the indices of its bands.
        order = torch.full((len(groups), largest), len(channels))
        slots = torch.empty(len(channels), dtype=torch.long)
        for g, group in enumerate(groups):
            for s, channel in enumerate(group):
                order[g, s] = channel if legacy_order else channels.index(channel)
                slots[channel] = g * largest + s
        self.register_buffer('order', order, persistent=False)
        self.register_buffer('slots', slots, persistent=False)

    def start_from(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Load a published decoder, as `MAEDecoder` does; warn about SatMAE's order."""
        untrained = super().start_from(state)
        if not untrained and not self.legacy_order:
            warnings.warn(
                "a decoder of SatMAE's release was trained in its published order of"
                ' bands: set *legacy_channel_order* to True, or ignore this if yours'
                ' was not (docs/group_channel_order.md)',
                stacklevel=2,
            )
        return untrained

    def code(self, metadata: Mapping[str, Tensor]) -> Tensor:
        """Return the code of each group, (1, G, C)."""
        return self.channel_embed[:, :-1]

    def class_code(self) -> Tensor:
        """Return the last code, (1, 1, C)."""
        return self.channel_embed[:, -1:]

    def predict(self, x: Tensor) -> Tensor:
        """Return the pixels (B, N, P) of tokens (B, N, D) after the final norm."""
        parts = x.unflatten(1, (len(self.groups), -1)).unbind(1)
        layers: Any = self.pred
        bands = torch.cat(
            [
                layer(part).unflatten(-1, (len(group), -1))
                for layer, part, group in zip(layers, parts, self.groups, strict=True)
            ],
            dim=2,
        )  # (B, h * w, C, p * p)
        rows = nn.functional.pad(bands, (0, 0, 0, 1))[:, :, self.order]
        # (B, h * w, G, S, p * p) -> (B, G * h * w, S * p * p)
        return rows.transpose(1, 2).flatten(3).flatten(1, 2)

    def statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each place over all its bands."""
        groups = len(self.groups)
        # (B, G * h * w, P) -> (B, h * w, G * P)
        places = rows.unflatten(1, (groups, -1)).transpose(1, 2).flatten(2)
        mean, std = patch_statistics(places)
        return mean.repeat(1, groups, 1), std.repeat(1, groups, 1)

    def unpacked(self, rows: Tensor) -> Tensor:
        """Return rows of pixels by band, (B, C, h * w, p * p)."""
        values = self.patch_size**2
        parts = rows.unflatten(1, (len(self.groups), -1)).unflatten(-1, (-1, values))
        # (B, G, h * w, S, p * p) -> (B, G * S, h * w, p * p)
        return parts.transpose(2, 3).flatten(1, 2)[:, self.slots]

    def pixels(self, rows: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Return the image (B, C, H, W) made of rows of pixels (B, N, P)."""
        bands = self.unpacked(rows)
        images = unpatchify(bands.flatten(0, 1), self.patch_size, grid=grid[1:])
        return images.unflatten(0, bands.shape[:2]).squeeze(2)


class TemporalDecoder(MAEDecoder):
    """Decoder of SatMAE's temporal model: each token carries the code of its time.

    Reference: Cong et al., *SatMAE*, https://arxiv.org/abs/2207.08051, section 3.2.

    Args:
        embed_dim: As for `MAEDecoder`, like all arguments that are not listed.
        time_dim: Width of the time code, a third each for year, month and hour.

    Raises:
        ValueError: If the widths do not fit together.
    """

    def __init__(
        self,
        embed_dim: int,
        in_channels: int,
        patch_size: int,
        grid: tuple[int, int],
        dim: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        time_dim: int = 192,
    ) -> None:
        """Check the width of the code."""
        if time_dim % 6:
            raise ValueError(
                f'*decoder_time_dim* {time_dim} is not a multiple of 6: year, month and'
                ' hour each take a third, half sines and half cosines'
            )
        super().__init__(
            embed_dim,
            in_channels,
            patch_size,
            grid,
            dim,
            depth,
            heads,
            mlp_ratio,
            time_dim,
        )

    def code(self, metadata: Mapping[str, Tensor]) -> Tensor:
        """Return the code of each time, (B, T, C)."""
        return sincos_1d(metadata['timestamps'], self.code_dim // 3).flatten(2)

    def pixels(self, rows: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Return the series (B, T, C, H, W) made of rows of pixels (B, N, P)."""
        times = rows.unflatten(1, (grid[0], -1))
        images = unpatchify(times.flatten(0, 1), self.patch_size, grid=grid[1:])
        return images.unflatten(0, times.shape[:2])
