"""Views of images in [0, 1]: random crops for training, one view for evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchgeo_explora.augment.crops import (
    draw_crops,
    quarter_turns,
    random_crops,
    resized_crops,
)
from torchgeo_explora.augment.photometric import band_chain, colour_chain
from torchgeo_explora.checks import require_positive, require_range

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Mark of pixels that are not missing. A resized pixel counts as missing if its mark
# differs from this by more than the second value.
_MARK = 0.25
_TOUCHED = 1e-4


class Views(NamedTuple):
    """Normalised crops of B images, crop-major."""

    global_: Tensor  # (2, B, C, S, S)
    local: Tensor  # (V, B, C, s, s)


class AnchoredViews(NamedTuple):
    """`Views`, and the global crops again for an anchor.

    The anchor's crops have another size and no photometric changes.
    """

    global_: Tensor  # (2, B, C, S, S)
    local: Tensor  # (V, B, C, s, s)
    anchor: Tensor  # (2, B, C, A, A)


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation, in place.

    Args:
        mean: Mean of values in [0, 1], one per channel or one for all.
        std: Standard deviation of values in [0, 1], one per channel or one for all.

    Raises:
        ValueError: If a standard deviation is not positive, or a value is not finite.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keep the statistics."""
        super().__init__()
        # Arguments, not state: they stay out of checkpoints.
        for name, values in (('mean', mean), ('std', std)):
            # Pixels that become infinite or NaN would be taken for missing ones, which
            # do not count in the loss. Checked on the CPU wherever the module is built,
            # since the meta device has no values.
            numbers = [float(value) for value in values]
            known = torch.tensor(numbers, device='cpu')
            least = torch.finfo(known.dtype).tiny
            wrong = not known.isfinite().all()
            if wrong or (name == 'std' and not (known >= least).all()):
                raise ValueError(
                    f'*{name}* is {tuple(values)}: give finite values of images in'
                    ' [0, 1], above 0 for *std*'
                )
            buffer = torch.tensor(numbers)[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return (..., C, H, W), normalised.

        Raises:
            ValueError: If the image has another number of channels.
        """
        for name, values in (('mean', self.mean), ('std', self.std)):
            if len(values) not in (1, image.shape[-3]):
                raise ValueError(
                    f'*{name}* has {len(values)} values, the image has'
                    f' {image.shape[-3]} channels: give one per channel, or one for all'
                )
        return image.sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class MultiCropOptions:
    """Options of `MultiCrop`; sizes in pixels follow the backbone's.

    Args:
        local_size: Size of the local views; if None, the multiple of the patch size
            nearest to 98 / 224 of the global views' size.
        local_views: V, local views per image; 0 for none.
        global_scale: Range of a global view's share of the image's area.
        local_scale: Range of a local view's share of the image's area.
        strength: Strength of the photometric changes, in [0, 1]: 1 is DINOv2's, 0
            changes geometry only. Where colour separates the classes, less is better.
        overhead: Whether each view is also turned by a random number of quarter turns:
            seen from above, no side of an image is its top.
    """

    local_size: int | None = None
    local_views: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    strength: float = 1.0
    overhead: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive('local_views', self.local_views, or_zero=True)
        require_positive('strength', self.strength, or_zero=True)
        for name in ('global_scale', 'local_scale'):
            require_range(name, getattr(self, name))
            require_positive(name, getattr(self, name)[0])

    def build(
        self,
        image_size: int,
        patch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        anchor_size: int | None = None,
    ) -> 'MultiCrop':
        """Return the views for a backbone.

        Args:
            image_size: Size of the global views in pixels.
            patch_size: Side of the backbone's patches in pixels.
            mean: Mean of the normalisation, of values in [0, 1].
            std: Standard deviation of the normalisation, of values in [0, 1].
            anchor_size: As for `MultiCrop`.

        Raises:
            ValueError: If *local_size* is not a multiple of the patch size.
        """
        size = image_size * 98 / 224 if self.local_size is None else self.local_size
        fitting = patch_size * max(1, round(size / patch_size))
        if self.local_size not in (None, fitting):
            raise ValueError(
                f'*local_size* {self.local_size} is not a multiple of the patch size'
                f' {patch_size}: use {fitting}'
            )
        return MultiCrop(
            image_size,
            fitting,
            self.local_views,
            self.global_scale,
            self.local_scale,
            mean,
            std,
            self.strength,
            self.overhead,
            anchor_size,
        )


class MultiCrop(nn.Module):
    """Two global and V local views of each image, as DINOv2 draws them.

    Oquab et al., *DINOv2* (https://arxiv.org/abs/2304.07193), with the reference
    implementation's distributions and its effective blur probabilities of 0, 0.9 and
    0.5 (global 1, global 2, local). Every view of every image is drawn independently.
    Difference: it works on a whole batch, on its device, in float32 instead of 8 bits.

    An image that does not have three channels has no colour to jitter: its bands get
    gain, noise and blur instead, as `summary` says in one line.

    Random numbers come from torch's global generators: fork and seed them around the
    call. All of them except the noise on bands are drawn on the CPU, so that a seed
    gives the same views on every device.

    Args:
        global_size: S, side of a global view in pixels.
        local_size: s, side of a local view in pixels.
        local_views: See `MultiCropOptions`.
        global_scale: See `MultiCropOptions`.
        local_scale: See `MultiCropOptions`.
        mean: Mean of the normalisation, of values in [0, 1].
        std: Standard deviation of the normalisation, of values in [0, 1].
        strength: See `MultiCropOptions`.
        overhead: See `MultiCropOptions`.
        anchor_size: A, side in pixels of the global crops for an anchor; None for no
            anchor.

    Raises:
        ValueError: If *strength* is out of range.
    """

    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 98,
        local_views: int = MultiCropOptions.local_views,
        global_scale: tuple[float, float] = MultiCropOptions.global_scale,
        local_scale: tuple[float, float] = MultiCropOptions.local_scale,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        strength: float = MultiCropOptions.strength,
        overhead: bool = MultiCropOptions.overhead,
        anchor_size: int | None = None,
    ) -> None:
        """Build the chains."""
        super().__init__()
        self.global_size = global_size
        self.local_size = local_size
        self.local_views = local_views
        self.global_scale = global_scale
        self.local_scale = local_scale
        self.strength = strength
        self.overhead = overhead
        self.anchor_size = anchor_size
        self.normalize = Normalize(mean, std)
        if not 0 <= strength <= 1:
            raise ValueError(f'*strength* is {strength}: choose from 0 to 1')
        # Global 1, global 2, local.
        blurs, solarized = (0.0, 0.9, 0.5), (0.0, 0.2, 0.0)
        self.colour = nn.ModuleList(
            colour_chain(*chances, strength)
            for chances in zip(blurs, solarized, strict=True)
        )
        self.bands = nn.ModuleList(band_chain(blur, strength) for blur in blurs)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Views | AnchoredViews:
        """Draw the views.

        Args:
            image: (B, C, H, W), floating, in [0, 1], finite; of any size.

        Returns:
            Views in float32, normalised; also those of an anchor if *anchor_size* is
            given.

        Raises:
            ValueError: If *image* has another shape or type.
        """
        _require_images(image)
        # Autocast would round the resampling weights to a few bits.
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            crops = draw_crops(image, 2, self.global_scale)
            global_ = resized_crops(image, *crops, self.global_size)
            local = random_crops(
                image, self.local_views, self.local_size, self.local_scale
            )
            if self.overhead:
                turns = torch.randint(4, (2 * len(image),))
                global_, local = quarter_turns(global_, turns), quarter_turns(local)
            if self.strength:
                chains = self.colour if image.shape[1] == 3 else self.bands
                parts = (global_[0], global_[1], local.flatten(0, 1))
                for chain, part in zip(chains, parts, strict=True):
                    if len(part):
                        chain(part)  # in place
            views = Views(self.normalize(global_), self.normalize(local))
            if self.anchor_size is None:
                return views
            anchor = resized_crops(image, *crops, self.anchor_size)
            if self.overhead:
                anchor = quarter_turns(anchor, turns)
            return AnchoredViews(*views, self.normalize(anchor))

    def summary(self, channels: int) -> str:
        """Return one line on what is done to images with that many channels."""
        if not self.strength:
            changes = 'no change of values'
        elif channels == 3:
            changes = (
                'colour jitter, grayscale, blur, solarize at'
                f" {self.strength:g} of DINOv2's strength"
            )
        else:
            gain, noise = 0.2 * self.strength, 0.02 * self.strength
            changes = (
                f'{channels} channels are not RGB: per band gain {1 - gain:g} to'
                f' {1 + gain:g}, noise up to {noise:g} of the range, blur; no colour'
                ' operation'
            )
        turns = ', quarter turns' if self.overhead else ''
        return (
            f'2 global views of {self.global_size} px, {self.local_views} local views'
            f' of {self.local_size} px{turns}; {changes}'
        )


class SingleCrop(nn.Module):
    """One random view of each image, as MAE trains on.

    He et al., *MAE* (https://arxiv.org/abs/2111.06377): a random resized crop, bicubic,
    mirrored half of the time, normalised; no change of values. Random numbers come from
    torch's CPU generator.

    Args:
        image_size: S, side of the view in pixels.
        scale: Range of the view's share of the image's area.
        mean: Mean of the normalisation, of values in [0, 1].
        std: Standard deviation of the normalisation, of values in [0, 1].
    """

    def __init__(
        self,
        image_size: int = 224,
        scale: tuple[float, float] = (0.2, 1.0),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """Keep size and statistics."""
        super().__init__()
        self.image_size = image_size
        self.scale = scale
        self.normalize = Normalize(mean, std)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Draw the view.

        Args:
            image: (B, C, H, W), or a series (B, T, C, H, W), of which all times get the
                same box; floating, in [0, 1], NaN where there is no data.

        Returns:
            (B, C, S, S) or (B, T, C, S, S), float32, normalised; NaN where a pixel
            without data contributed.

        Raises:
            ValueError: If *image* has another shape or type.
        """
        _require_images(image, series=True)
        bands = image.flatten(1, -3).float()  # (B, T, C, H, W) -> (B, T * C, H, W)
        with torch.autocast(image.device.type, enabled=False):
            view = _resampled(
                bands, lambda x: random_crops(x, 1, self.image_size, self.scale)[0]
            )
            return self.normalize(view.unflatten(1, image.shape[1:-2]))

    def summary(self, channels: int) -> str:
        """Return one line on what is done to images with that many channels."""
        low, high = self.scale
        return (
            f'1 view of {self.image_size} px, {low:g} to {high:g} of the area of an'
            ' image; no change of values'
        )


class Preprocess(nn.Module):
    """One view of the whole image, for evaluation: resized and normalised.

    Bicubic, antialiased. Nothing is cut off; the aspect ratio is not kept.

    Args:
        image_size: Side of the view in pixels, or (height, width).
        mean: Mean of the normalisation, of values in [0, 1].
        std: Standard deviation of the normalisation, of values in [0, 1].
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """Keep size and statistics."""
        super().__init__()
        if isinstance(image_size, int):
            image_size = (image_size, image_size)
        self.image_size = tuple(image_size)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.normalize = Normalize(mean, std)

    def forward(self, image: Tensor) -> Tensor:
        """Return the view: *image* with image_size for H and W, float32, normalised.

        Args:
            image: (B, C, H, W) or (B, T, C, H, W), floating, in [0, 1], NaN where there
                is no data. The view is NaN where such a pixel contributed.

        Raises:
            ValueError: If *image* has another shape or type.
        """
        _require_images(image, series=True)
        bands = image.flatten(1, -3).float()  # (B, T, C, H, W) -> (B, T * C, H, W)
        view = _resampled(
            bands,
            lambda x: F.interpolate(
                x, size=self.image_size, mode='bicubic', antialias=True
            ).clamp(0, 1),
        )
        return self.normalize(view.unflatten(1, image.shape[1:-2]))


class CentreCrop(Preprocess):
    """The middle of each image: resized, cropped and normalised.

    A fraction of 0.875 is the usual evaluation at 224 pixels: the image is resized to
    256, and the middle 224 are cropped. The aspect ratio is not kept.

    Args:
        image_size: Side of the view in pixels.
        fraction: Share of each side that is seen, in (0, 1]; 1 is the whole image.
        mean: Mean of the normalisation, of values in [0, 1].
        std: Standard deviation of the normalisation, of values in [0, 1].

    Raises:
        ValueError: If the fraction is out of range.
    """

    def __init__(
        self,
        image_size: int,
        fraction: float = 1.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """Choose the size that the image is resized to."""
        if not 0 < fraction <= 1:
            raise ValueError(f'*fraction* is {fraction}: choose above 0 and up to 1')
        super().__init__(int(image_size / fraction), mean, std)
        self.crop_size = image_size

    def forward(self, image: Tensor) -> Tensor:
        """Return the view, (..., C, S, S), float32, normalised.

        Args:
            image: (B, C, H, W) or (B, T, C, H, W), floating, in [0, 1].
        """
        view = super().forward(image)
        top, left = (round((side - self.crop_size) / 2) for side in view.shape[-2:])
        size = self.crop_size
        return view[..., top : top + size, left : left + size]


def _resampled(bands: Tensor, resample: Callable[[Tensor], Tensor]) -> Tensor:
    """Return bands (B, C, H, W), which may hold NaN, as *resample* resizes them."""
    missing = bands.isnan()
    if not missing.any():
        return resample(bands)
    # One NaN would spread over a row. So missing pixels are marked in another image,
    # with values in the middle of the range, where negative weights are not clamped.
    marks = _MARK + missing / 2
    view, marks = resample(torch.cat([bands.nan_to_num(0), marks], dim=1)).chunk(2, 1)
    return view.masked_fill((marks - _MARK).abs() > _TOUCHED, torch.nan)


def _require_images(image: Tensor, series: bool = False) -> None:
    if image.ndim != 4 and not (series and image.ndim == 5):
        allowed = '(B, C, H, W) or (B, T, C, H, W)' if series else '(B, C, H, W)'
        raise ValueError(
            f'expected images {allowed}, got shape {tuple(image.shape)}: a single image'
            ' needs a batch axis'
        )
    if not image.is_floating_point():
        raise ValueError(
            f'expected float images in [0, 1], got {image.dtype}: apply UnitRange first'
        )
