"""Kornia operations with the laws that DINOv2 draws from, on images in [0, 1]."""

from typing import Any

import torch
from kornia.augmentation import ImageSequential, IntensityAugmentationBase2D
from kornia.color import rgb_to_grayscale
from kornia.enhance import solarize
from kornia.filters import gaussian_blur2d
from torch import Tensor


class DrawnOnly(IntensityAugmentationBase2D):
    """Kornia operation that works on the drawn samples alone, in place.

    Kornia's base runs an operation on the whole batch, then blends: most of that work
    is for nothing where the probability is small. Parameters are drawn on the CPU
    whatever the device, so that one seed gives the same views everywhere.

    Args:
        p: Probability that a sample is drawn.
    """

    #: Names of the parameters that have one row per sample.
    drawn: tuple[str, ...] = ()

    def __init__(self, p: float) -> None:
        """Set the probability."""
        super().__init__(p=p)

    def set_rng_device_and_dtype(
        self, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Keep drawing on the CPU in float32 when the module moves."""
        super().set_rng_device_and_dtype(torch.device('cpu'), torch.float32)

    def transform_inputs(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Apply the operation to the drawn rows of *input*, (B, C, H, W)."""
        chosen = (params['batch_prob'] > 0.5).nonzero().squeeze(1)
        if len(chosen):
            own = {name: params[name][chosen] for name in self.drawn}
            rows = chosen.to(input.device)
            input[rows] = self.apply_transform(input[rows], own, flags)
        return input


class ColorJitter(DrawnOnly):
    """torchvision's colour jitter: four changes in an order of each sample's own.

    Kornia's `ColorJitter` has the same steps, but one order for the whole batch, and a
    hue step by trigonometry that costs four times as much.

    Args:
        brightness: The factor is drawn from [1 - brightness, 1 + brightness].
        contrast: Likewise.
        saturation: Likewise.
        hue: The shift is drawn from [-hue, hue], in turns.
        p: Probability that a sample is drawn.
    """

    drawn = ('factor', 'order')

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        p: float = 0.8,
    ) -> None:
        """Set the amounts."""
        super().__init__(p)
        self.amounts = torch.tensor([brightness, contrast, saturation, hue])

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw four factors, (B, 4), and an order of the four steps, (B, 4)."""
        neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
        draws = 2 * torch.rand(batch_shape[0], 4) - 1
        order = torch.rand(batch_shape[0], 4).argsort(1)
        return {'factor': neutral + self.amounts * draws, 'order': order}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Apply the steps: *input* is (B, 3, H, W) and changes in place."""
        steps = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        for position in range(4):
            for number, step in enumerate(steps):
                samples = (params['order'][:, position] == number).nonzero().squeeze(1)
                if len(samples):
                    factor = params['factor'][samples, number].to(input.device)
                    rows = samples.to(input.device)
                    input[rows] = step(input[rows], factor[:, None, None, None])
        return input


class Grayscale(DrawnOnly):
    """Luma (0.299, 0.587, 0.114) on all three channels, as PIL does it."""

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Return (B, 3, H, W) without colour."""
        return rgb_to_grayscale(input).expand_as(input)


class GaussianBlur(DrawnOnly):
    """Gaussian blur, kernel 9, sigma uniform in [0.1, 2], edges reflected."""

    drawn = ('sigma',)

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw sigma in pixels, (B,)."""
        return {'sigma': 0.1 + 1.9 * torch.rand(batch_shape[0])}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Return (B, C, H, W), each sample with its sigma."""
        sigma = params['sigma'][:, None].expand(-1, 2)
        # In parts that stay in a CPU's cache: the 18 taps each pass over them.
        parts = zip(input.split(16), sigma.split(16), strict=True)
        return torch.cat([gaussian_blur2d(x, (9, 9), s, 'reflect') for x, s in parts])


class Solarize(DrawnOnly):
    """Invert what is not below 128/255, DINOv2's threshold of 128 in 8 bits."""

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Return (B, C, H, W)."""
        return solarize(input, 128 / 255)


class BandJitter(DrawnOnly):
    """Gain and noise for images without RGB, where colour has no meaning.

    Every band of every sample gets a gain of its own, uniform in [1 - gain, 1 + gain];
    every sample gets Gaussian noise with a standard deviation uniform in [0, noise].

    Args:
        gain: Largest change of a band's gain.
        noise: Largest standard deviation, in units of the value range.
        p: Probability that a sample is drawn.
    """

    drawn = ('gain', 'deviation')

    def __init__(self, gain: float = 0.2, noise: float = 0.02, p: float = 0.8) -> None:
        """Set the amounts."""
        super().__init__(p)
        self.gain = gain
        self.noise = noise

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw gains, (B, C), and standard deviations, (B,)."""
        images, channels = batch_shape[:2]
        gain = 1 + self.gain * (2 * torch.rand(images, channels) - 1)
        return {'gain': gain, 'deviation': self.noise * torch.rand(images)}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Return (B, C, H, W) in [0, 1]."""
        gain = params['gain'].to(input.device)[:, :, None, None]
        deviation = params['deviation'].to(input.device)[:, None, None, None]
        # The noise itself is drawn where it is used: it is as large as the images.
        noise = torch.randn_like(input).mul_(deviation)
        return noise.addcmul_(input, gain).clamp_(0, 1)


def adjust_brightness(image: Tensor, factor: Tensor) -> Tensor:
    """Return image * factor in [0, 1]; (B, C, H, W), (B, 1, 1, 1)."""
    return (image * factor).clamp_(0, 1)


def adjust_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of the luma; (B, 3, H, W), (B, 1, 1, 1)."""
    mean = rgb_to_grayscale(image).mean((-2, -1), keepdim=True)
    return (image * factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luma; (B, 3, H, W), (B, 1, 1, 1)."""
    return torch.lerp(rgb_to_grayscale(image), image, factor).clamp_(0, 1)


def adjust_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV; (B, 3, H, W) in [0, 1], (B, 1, 1, 1) in turns.

    The largest and the smallest channel of a pixel stay what they are, so each channel
    is their mixture, by a trapezoid of the new hue.
    """
    red, green, blue = image.unbind(1)  # (B, H, W) each
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    span = high - low
    inverse = (span + (span == 0)).reciprocal_()
    hue = torch.where(
        high == red,
        (green - blue).mul_(inverse),
        torch.where(
            high == green,
            (blue - red).mul_(inverse).add_(2),
            (red - green).mul_(inverse).add_(4),
        ),
    )
    hue += 6 * shift[:, 0]
    hue -= (hue / 6).floor_().mul_(6)  # [0, 6): red at 0, green at 2, blue at 4
    share = torch.stack(
        [(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], 1
    )
    return torch.addcmul(low[:, None], span[:, None], share.clamp_(0, 1))


def colour_chain(blur: float, solarize: float = 0.0) -> ImageSequential:
    """Return DINOv2's photometric chain for RGB, with the probabilities given."""
    return _chain(ColorJitter(), Grayscale(0.2), GaussianBlur(blur), Solarize(solarize))


def band_chain(blur: float) -> ImageSequential:
    """Return the chain for images without RGB."""
    return _chain(BandJitter(), GaussianBlur(blur))


def _chain(*operations: DrawnOnly) -> ImageSequential:
    # Without Kornia's conveniences: they would keep the last output alive.
    return ImageSequential(
        *(operation for operation in operations if operation.p > 0),
        disable_sequential_features=True,
    )
