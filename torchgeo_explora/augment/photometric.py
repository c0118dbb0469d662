"""Kornia operations with DINOv2's random parameters, on images in [0, 1]."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from kornia.augmentation import ImageSequential, IntensityAugmentationBase2D
from kornia.color import rgb_to_grayscale
from kornia.enhance import solarize
from kornia.filters import gaussian_blur2d
from torch import Tensor


class DrawnOnly(IntensityAugmentationBase2D):
    """Kornia operation that works only on the samples drawn, in place.

    Kornia's base class runs an operation on the whole batch and then blends, which is
    mostly wasted work if the probability is small. Parameters are drawn on the CPU on
    every device, so that one seed gives the same views everywhere.

    A subclass writes `change`, and `generate_parameters` if it draws anything.

    Args:
        p: Probability that a sample is drawn.
    """

    #: Names of the parameters, each with one row per sample.
    drawn: tuple[str, ...] = ()

    def __init__(self, p: float) -> None:
        """Set the probability."""
        super().__init__(p=p)

    def forward_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw which samples change, and the parameters of all, one row each."""
        # Not Kornia's draw: it follows the module's device, and versions differ in
        # whether a sample that is not drawn gets parameters.
        return {
            'batch_prob': (torch.rand(batch_shape[0]) < self.p).float(),
            'forward_input_shape': torch.tensor(batch_shape),
            **self.generate_parameters(batch_shape),
        }

    def transform_inputs(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Change the drawn rows of *input*, (B, C, H, W), and return it."""
        rows = (params['batch_prob'] > 0.5).nonzero().squeeze(1)
        if len(rows):
            self.change(input, rows, *(params[name][rows] for name in self.drawn))
        return input

    def change(self, image: Tensor, rows: Tensor, *params: Tensor) -> None:
        """Change rows of a batch in place.

        Args:
            image: (B, C, H, W) in [0, 1].
            rows: (R,), int64, on the CPU.
            *params: The parameters in `drawn` of these rows, (R, ...), on the CPU.
        """
        raise NotImplementedError


class ColorJitter(DrawnOnly):
    """torchvision's colour jitter: four changes, in a random order per sample.

    Kornia's `ColorJitter` has the same steps, but one order for the whole batch, and
    its hue step converts to HSV, which costs four times as much.

    Args:
        brightness: The factor is drawn from [1 - brightness, 1 + brightness].
        contrast: As *brightness*, for the contrast.
        saturation: As *brightness*, for the saturation.
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

    def change(self, image: Tensor, rows: Tensor, *params: Tensor) -> None:
        """Apply the steps to rows of (B, 3, H, W)."""
        factor, order = params
        steps = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        for position in order.unbind(1):
            for number, step in enumerate(steps):
                due = position == number
                if due.any():
                    amount = factor[due, number, None, None, None].to(image.device)
                    _replace(image, rows[due], partial(step, factor=amount))


class Grayscale(DrawnOnly):
    """Luma (0.299, 0.587, 0.114) on all three channels, as PIL does it."""

    def change(self, image: Tensor, rows: Tensor, *params: Tensor) -> None:
        """Make rows of (B, 3, H, W) grey."""
        _replace(image, rows, lambda x: rgb_to_grayscale(x).expand_as(x))


class GaussianBlur(DrawnOnly):
    """Gaussian blur, kernel 9, sigma uniform in [0.1, 2] pixels, edges reflected."""

    drawn = ('sigma',)

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw sigma, (B,)."""
        return {'sigma': 0.1 + 1.9 * torch.rand(batch_shape[0])}

    def change(self, image: Tensor, rows: Tensor, *params: Tensor) -> None:
        """Blur rows of (B, C, H, W), each with its sigma."""
        (sigma,) = params
        # In parts that fit into a CPU's cache, since each of the 18 taps reads them.
        for some, width in zip(rows.split(16), sigma.split(16), strict=True):
            pair = width[:, None].expand(-1, 2)
            blur = partial(gaussian_blur2d, kernel_size=(9, 9), sigma=pair)
            _replace(image, some, blur)


class Solarize(DrawnOnly):
    """Invert what is not below 128/255, DINOv2's threshold of 128 in 8 bits."""

    def change(self, image: Tensor, rows: Tensor, *params: Tensor) -> None:
        """Solarize rows of (B, C, H, W)."""
        _replace(image, rows, lambda x: solarize(x, 128 / 255))


class BandJitter(DrawnOnly):
    """Gain and noise for images other than RGB, where colour has no meaning.

    Every band of every sample gets its own gain, uniform in [1 - gain, 1 + gain];
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

    def change(self, image: Tensor, rows: Tensor, *params: Tensor) -> None:
        """Change rows of (B, C, H, W); they stay in [0, 1]."""
        gain, deviation = (values.to(image.device) for values in params)

        def jitter(x: Tensor) -> Tensor:
            # The noise is drawn where it is used: it is as large as the images.
            noise = torch.randn_like(x).mul_(deviation[:, None, None, None])
            return noise.addcmul_(x, gain[..., None, None]).clamp_(0, 1)

        _replace(image, rows, jitter)


def _replace(image: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    rows = rows.to(image.device)
    image.index_copy_(0, rows, change(image.index_select(0, rows)))


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


def adjust_hue(image: Tensor, factor: Tensor) -> Tensor:
    """Rotate the hue of HSV; (B, 3, H, W) in [0, 1], (B, 1, 1, 1) in turns.

    The largest and the smallest value of a pixel stay the same, so each channel is a
    mixture of them, weighted by a trapezoid of the new hue.
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
    hue += 6 * factor[:, 0]
    hue -= (hue / 6).floor_().mul_(6)  # [0, 6): red at 0, green at 2, blue at 4
    share = torch.stack(
        [(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], 1
    )
    return torch.addcmul(low[:, None], span[:, None], share.clamp_(0, 1))


def colour_chain(
    blur: float, solarize: float = 0.0, strength: float = 1.0
) -> ImageSequential:
    """Return DINOv2's chain for RGB, which changes (B, 3, H, W) in [0, 1] in place.

    Args:
        blur: Probability of the blur.
        solarize: Probability of solarization.
        strength: Factor on the amounts of the jitter and on the other probabilities.
    """
    brightness, contrast, saturation, hue = (
        strength * amount for amount in (0.4, 0.4, 0.2, 0.1)
    )
    chance = 0.8 if strength else 0.0
    return _chain(
        ColorJitter(brightness, contrast, saturation, hue, chance),
        Grayscale(strength * 0.2),
        GaussianBlur(strength * blur),
        Solarize(strength * solarize),
    )


def band_chain(blur: float, strength: float = 1.0) -> ImageSequential:
    """Return the chain for other images, which changes (B, C, H, W) in place.

    Args:
        blur: Probability of the blur.
        strength: Factor on gain, noise and the probability of the blur.
    """
    return _chain(
        BandJitter(strength * 0.2, strength * 0.02, p=0.8 if strength else 0.0),
        GaussianBlur(strength * blur),
    )


def _chain(*operations: DrawnOnly) -> ImageSequential:
    # Without Kornia's extras, which keep the last output in memory.
    return ImageSequential(
        *(operation for operation in operations if operation.p > 0),
        disable_sequential_features=True,
    )
