"""MAE's objective: predict the pixels of hidden patches from the visible ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.checks import require_positive
from torchgeo_explora.functional import (
    gather_tokens,
    masked_mse,
    random_mask,
    visible_indices,
)
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.models.backbones.tokens import Tokens
from torchgeo_explora.objectives.objective import Objective, batch_metadata


@dataclass(frozen=True)
class MAEOptions:
    """Options of `MAE`.

    Args:
        decoder_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        decoder_mlp_ratio: Width of the decoder's hidden layers, relative to its own.
        decoder_channel_dim: Part of the decoder's width that encodes a spectral group.
        decoder_time_dim: Part of the decoder's width that encodes a time.
        norm_pix: Whether each patch of the target is normalised to zero mean and unit
            variance; with spectral groups, each place, over all its bands together.
        legacy_channel_order: Whether spectral groups are decoded in SatMAE's published
            order, which its released decoders need.
        mask_ratio: Share of the tokens that are hidden, between 0 and 1.
        consistent_mask: Whether the same places are hidden in all groups or times.
        decoder_rank: Rank of LoRA on q and v of a decoder that comes with the weights;
            0 for none.

    Raises:
        ValueError: If an option is out of range.
    """

    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_mlp_ratio: float = 4.0
    decoder_channel_dim: int = 128
    decoder_time_dim: int = 192
    norm_pix: bool = True
    legacy_channel_order: bool = False
    mask_ratio: float = 0.75
    consistent_mask: bool = False
    decoder_rank: int = 32

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ('dim', 'depth', 'heads', 'mlp_ratio'):
            require_positive(f'decoder_{name}', getattr(self, f'decoder_{name}'))
        require_positive('decoder_rank', self.decoder_rank, or_zero=True)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(
                f'*mask_ratio* is {self.mask_ratio}: choose above 0 and below 1,'
                ' such as 0.75'
            )


class MAE(Objective):
    """Masked autoencoding: only visible tokens are encoded, all are decoded.

    He et al., *MAE* (https://arxiv.org/abs/2111.06377), and Cong et al., *SatMAE*
    (https://arxiv.org/abs/2207.08051) for spectral groups and series of images. The
    loss is the mean squared error over hidden patches, of pixels that are normalised
    per patch.

    NaN in an image means no data: the encoder sees 0 there, and such values count
    neither in the loss nor in a patch's mean and standard deviation. A patch without
    data is never counted.

    Difference: groups predict their own bands, unless *legacy_channel_order* asks for
    SatMAE's published behaviour (docs/group_channel_order.md).

    Args:
        student: Backbone that encodes, and provides the decoder for its tokens.
        *options: Fields of `MAEOptions`, in their order.
        augment: Module from images in [0, 1] to normalised views; none if None.
        **named: Fields of `MAEOptions`, by name.

    Raises:
        ValueError: If an option is out of range, or the decoder's widths do not fit
            together.
    """

    # The class token has no target of its own.
    pooling = 'mean'

    def __init__(
        self,
        student: Backbone,
        *options: Any,
        augment: nn.Module | None = None,
        **named: Any,
    ) -> None:
        """Build the decoder for *student*."""
        super().__init__()
        self.options = MAEOptions(*options, **named)
        self.student = student
        self.decoder = student.mae_decoder(
            dim=self.options.decoder_dim,
            depth=self.options.decoder_depth,
            heads=self.options.decoder_heads,
            mlp_ratio=self.options.decoder_mlp_ratio,
            channel_dim=self.options.decoder_channel_dim,
            time_dim=self.options.decoder_time_dim,
            legacy_order=self.options.legacy_channel_order,
        )
        self.augment = augment
        self.diagnostics = {}

    def start_decoder(self, extras: Mapping[str, Tensor], alpha: int = 1) -> None:
        """Set the decoder's first weights, and adapt it.

        A decoder that came with the backbone's weights is frozen, except for its norms
        and LoRA of rank *decoder_rank*; without one, the new decoder is trained in full
        and starts at the scale of the backbone's tokens.

        Args:
            extras: What the weights contained in addition to the backbone.
            alpha: LoRA scaling is alpha / rank.
        """
        if not any(name.startswith('decoder_') for name in extras):
            self.decoder.read_from(self.student.norm)
            return
        untrained = self.decoder.start_from(extras)
        rank = self.options.decoder_rank
        adapt(
            self.decoder,
            Adaptation(
                (),
                cls_token=False,
                adapter=lora(rank, alpha) if rank else None,
                modules=untrained,
            ),
        )

    @property
    def pretrained(self) -> Backbone:
        """The student."""
        return self.student

    def forward(self, batch: Mapping[str, Any], progress: float) -> dict[str, Tensor]:
        """Draw a view and a mask, and predict: see `Objective.forward`.

        The mask is drawn by torch's CPU generator, so a seed gives the same mask on
        every device.
        """
        image = batch['image']
        if self.augment is not None:
            image = self.augment(image)
        metadata = batch_metadata(batch)
        tokens = self._embed(image, metadata)
        mask = self.draw_mask(len(image), tokens.grid)
        prediction = self._decode(tokens, mask, metadata)
        target = self._target(image)
        return {'mae': masked_mse(prediction, target, mask.to(target.device))}

    def draw_mask(self, images: int, grid: tuple[int, int, int]) -> Tensor:
        """Return a random mask, (B, N) bool on the CPU, True where hidden.

        Args:
            images: B.
            grid: (groups or times or 1, h, w).

        Raises:
            ValueError: If no token stays visible.
        """
        layers, height, width = grid
        drawn = 1 if self.options.consistent_mask else layers
        count = drawn * height * width
        if int(count * (1 - self.options.mask_ratio)) < 1:
            raise ValueError(
                f'*mask_ratio* {self.options.mask_ratio} hides all of {count} tokens:'
                ' lower it'
            )
        mask = random_mask(torch.rand(images, count), self.options.mask_ratio)
        return mask.repeat(1, layers) if self.options.consistent_mask else mask

    def reconstruct(
        self, image: Tensor, mask: Tensor, **metadata: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the prediction, and the target that it is compared with.

        Args:
            image: Normalised pixels, (B, C, H, W), or (B, T, C, H, W) for a series;
                NaN where there is no data.
            mask: (B, N) bool, True where a token is hidden; each row hides the same
                number.
            **metadata: As for the backbone's `embed`.

        Returns:
            Prediction and target, (B, N, P) each; for spectral groups (B, C, h * w,
            p * p), bands in the order of the image. With `norm_pix` the target is
            normalised.

        Raises:
            ValueError: If the mask does not fit.
        """
        tokens = self._embed(image, metadata)
        prediction = self._decode(tokens, mask, metadata)
        target = self._target(image)
        return self.decoder.unpacked(prediction), self.decoder.unpacked(target)

    def loss(self, image: Tensor, mask: Tensor, **metadata: Tensor) -> Tensor:
        """Return the mean squared error over hidden tokens, as for `reconstruct`.

        The mean is taken over the known values of a token, then over the hidden tokens
        of the batch that have any.
        """
        tokens = self._embed(image, metadata)
        prediction = self._decode(tokens, mask, metadata)
        return masked_mse(prediction, self._target(image), mask.to(prediction.device))

    @torch.no_grad()
    def paint(
        self, image: Tensor, mask: Tensor, **metadata: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mask and the reconstruction as images.

        With `norm_pix`, patches are predicted without their mean and standard
        deviation. Those of the image itself are used, so only the structure is the
        model's.

        Args:
            image: As for `reconstruct`.
            mask: As for `reconstruct`.
            **metadata: As for `reconstruct`.

        Returns:
            Two tensors in the shape of *image*: bool, True where hidden, and the
            predicted pixels, of visible patches too.
        """
        tokens = self._embed(image, metadata)
        rows = self._decode(tokens, mask, metadata).float()
        if self.options.norm_pix:
            mean, std = self.decoder.statistics(self.student.patchify(image))
            rows = rows * std + mean
        hidden = mask.to(rows).unsqueeze(-1).expand_as(rows)
        grid = tokens.grid
        return self.decoder.pixels(hidden, grid) > 0.5, self.decoder.pixels(rows, grid)

    def _embed(self, image: Tensor, metadata: Mapping[str, Tensor]) -> Tokens:
        # 0 is the mean of normalised pixels.
        return self.student.embed(image.nan_to_num(0), **metadata)

    def _decode(
        self, tokens: Tokens, mask: Tensor, metadata: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the predicted pixels of all tokens, (B, N, P)."""
        content, position, grid = tokens
        if mask.dtype != torch.bool or mask.shape != content.shape[:2]:
            raise ValueError(
                f'mask is {mask.dtype} {tuple(mask.shape)}, expected bool (B, N) ='
                f' {tuple(content.shape[:2])} for the tokens on a grid {grid}, True'
                ' where hidden'
            )
        index = visible_indices(mask).to(content.device)
        features = self.student.encode(
            gather_tokens(content, index), gather_tokens(position, index)
        )
        return self.decoder(features, index, grid, metadata)

    @torch.no_grad()
    def _target(self, image: Tensor) -> Tensor:
        """Return the pixels to predict, (B, N, P), NaN where there is no data."""
        rows = self.student.patchify(image)
        if not self.options.norm_pix:
            return rows
        mean, std = self.decoder.statistics(rows)
        return (rows - mean) / std

    def before_step(self, progress: float) -> dict[str, Tensor]:
        """Return the gradient norms; MAE does not clip."""
        return {
            name: nn.utils.get_total_norm(
                [p.grad for p in module.parameters() if p.grad is not None]
            )
            for name, module in (('backbone', self.student), ('decoder', self.decoder))
        }

    def after_step(self, progress: float) -> None:
        """Do nothing: everything that is trained has a gradient."""
