import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as TF

from torchgeo_explora.augment.photometric import (
    BandJitter,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    Solarize,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    band_chain,
    colour_chain,
)

# torchvision's luma of red is 0.2989 on tensors; PIL's, and ours, is 0.299.
LUMA = {'atol': 3e-4, 'rtol': 0}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def image():
    """Return images with gray, black, white and primary pixels among them."""
    image = torch.rand(4, 3, 20, 20)
    image[:, :, 0] = image[:, :1, 0]
    image[:, :, 1, :8] = torch.tensor(
        [[0, 1, 1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0, 1, 1]]
    ).float()
    return image


@pytest.mark.parametrize(
    ('ours', 'theirs', 'factors'),
    [
        (adjust_brightness, TF.adjust_brightness, [0.6, 1.0, 1.2, 1.4]),
        (adjust_contrast, TF.adjust_contrast, [0.6, 1.0, 1.2, 1.4]),
        (adjust_saturation, TF.adjust_saturation, [0.8, 1.0, 1.1, 1.2]),
        (adjust_hue, TF.adjust_hue, [-0.1, 0.0, 0.07, 0.1]),
        (adjust_hue, TF.adjust_hue, [-0.5, 0.3, -0.3, 0.5]),
    ],
)
def test_each_step_equals_torchvisions(image, ours, theirs, factors):
    changed = ours(image, torch.tensor(factors)[:, None, None, None])
    expected = torch.stack(
        [theirs(x, factor) for x, factor in zip(image, factors, strict=True)]
    )
    assert_close(changed, expected, **LUMA)


def test_hue_is_exact(image):
    shift = torch.full((4, 1, 1, 1), 0.09)
    assert_close(
        adjust_hue(image, shift), TF.adjust_hue(image, 0.09), atol=1e-5, rtol=0
    )
    assert_close(adjust_hue(image, 0 * shift), image)


def test_jitter_applies_each_samples_own_order(image):
    steps = (
        TF.adjust_brightness,
        TF.adjust_contrast,
        TF.adjust_saturation,
        TF.adjust_hue,
    )
    order = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]])
    factor = torch.tensor([[1.4, 0.7, 1.2, 0.1]]).repeat(4, 1)
    expected = []
    for x, own in zip(image.clone(), order.tolist(), strict=True):
        for number in own:
            x = steps[number](x, factor[0, number].item())
        expected.append(x)
    ColorJitter().change(image, torch.arange(4), factor, order)
    assert_close(image, torch.stack(expected), atol=1e-3, rtol=0)


def test_jitter_draws_the_ranges_and_all_orders():
    drawn = ColorJitter().generate_parameters((4000, 3, 8, 8))
    low = torch.tensor([0.6, 0.6, 0.8, -0.1])
    high = torch.tensor([1.4, 1.4, 1.2, 0.1])
    factor = drawn['factor']
    assert (factor >= low).all()
    assert (factor <= high).all()
    assert_close(factor.mean(0), (low + high) / 2, atol=0.02, rtol=0)
    # A uniform draw has a deviation of its width over the root of 12.
    assert_close(factor.std(0), (high - low) / 12**0.5, atol=0.02, rtol=0)
    orders, counts = drawn['order'].unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 100


def test_grayscale_is_pils_luma(image):
    luma = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, True)
    expected = TF.rgb_to_grayscale(image, 3)
    Grayscale(1.0)(image)
    assert_close(image, luma.expand(-1, 3, -1, -1))
    assert_close(image, expected, **LUMA)


@pytest.mark.parametrize('channels', [1, 3, 13])
def test_blur_equals_torchvisions_kernel_of_nine(channels):
    image = torch.rand(20, channels, 12, 17)
    sigma = torch.linspace(0.1, 2.0, 20)
    expected = torch.stack(
        [
            TF.gaussian_blur(x, [9, 9], [deviation])
            for x, deviation in zip(image, sigma.tolist(), strict=True)
        ]
    )
    GaussianBlur(1.0).change(image, torch.arange(20), sigma)
    assert_close(image, expected, atol=1e-5, rtol=0)


def test_blur_draws_sigma_uniformly():
    sigma = GaussianBlur(1.0).generate_parameters((4000, 3, 8, 8))['sigma']
    assert sigma.min() >= 0.1
    assert sigma.max() <= 2.0
    assert_close(sigma.mean().item(), 1.05, atol=0.04, rtol=0)
    assert_close(sigma.std().item(), 1.9 / 12**0.5, atol=0.02, rtol=0)


def test_solarize_inverts_from_128_of_255(image):
    image[0, 0, 0, :2] = torch.tensor([127, 128]) / 255
    expected = TF.solarize(image, 128 / 255)
    Solarize(1.0)(image)
    assert_close(image, expected)
    assert_close(image[0, 0, 0, :2], torch.tensor([127, 127]) / 255)


def test_band_jitter_changes_gain_per_band_and_adds_noise():
    image = torch.full((300, 5, 16, 16), 0.5)
    BandJitter(p=1.0)(image)
    gain = image.mean((-2, -1)) / 0.5  # (B, C)
    assert gain.min() > 0.78
    assert gain.max() < 1.22
    assert_close(gain.std().item(), 0.4 / 12**0.5, atol=0.01, rtol=0)
    assert_close(torch.corrcoef(gain.T), torch.eye(5), atol=0.25, rtol=0)
    noise = image.std((-2, -1)).mean(1)  # (B,)
    assert noise.max() < 0.025
    assert_close(noise.mean().item(), 0.01, atol=2e-3, rtol=0)

    extreme = torch.ones(50, 2, 8, 8)
    BandJitter(p=1.0)(extreme)
    assert extreme.max() <= 1


@pytest.mark.parametrize(
    ('operation', 'probability'),
    [
        (ColorJitter(), 0.8),
        (Grayscale(0.2), 0.2),
        (GaussianBlur(0.9), 0.9),
        (GaussianBlur(0.5), 0.5),
        (Solarize(0.2), 0.2),
        (BandJitter(), 0.8),
    ],
)
def test_operations_change_the_share_they_are_asked_to(operation, probability):
    image = torch.rand(3000, 3, 5, 5)
    before = image.clone()
    operation(image)
    changed = (image != before).flatten(1).any(1).float().mean().item()
    # Four standard errors, and the 3 % of sigmas that are too small to change a bit.
    assert_close(changed, probability, atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ('chain', 'expected'),
    [
        (colour_chain(0.0), [(ColorJitter, 0.8), (Grayscale, 0.2)]),
        (
            colour_chain(0.9, solarize=0.2),
            [
                (ColorJitter, 0.8),
                (Grayscale, 0.2),
                (GaussianBlur, 0.9),
                (Solarize, 0.2),
            ],
        ),
        (band_chain(0.5), [(BandJitter, 0.8), (GaussianBlur, 0.5)]),
    ],
)
def test_chains_hold_what_dinov2_applies_in_its_order(chain, expected):
    assert [(type(operation), operation.p) for operation in chain] == expected


@pytest.mark.parametrize('chain', [colour_chain(0.9, solarize=0.2), band_chain(0.9)])
def test_chains_work_in_place_and_stay_in_range(chain):
    image = torch.rand(16, 3, 12, 12)
    before = image.clone()
    assert_close(chain(image), image, atol=0, rtol=0)
    assert not torch.equal(image, before)
    assert image.min() >= 0
    assert image.max() <= 1


def test_a_part_of_a_larger_tensor_can_change_alone():
    images = torch.rand(2, 8, 3, 12, 12)
    before = images.clone()
    colour_chain(0.9)(images[1])
    assert torch.equal(images[0], before[0])
    assert not torch.equal(images[1], before[1])


def test_draws_do_not_depend_on_the_type_of_the_module():
    image = torch.rand(8, 3, 12, 12)
    results = []
    for chain in (colour_chain(0.9), colour_chain(0.9).double()):
        torch.manual_seed(3)
        results.append(chain(image.clone()))
    assert_close(*results, atol=0, rtol=0)


@pytest.mark.parametrize('chain', [colour_chain(0.9, solarize=0.2), band_chain(0.9)])
def test_chains_keep_to_the_device_of_the_image(chain):
    # The meta device refuses to mix with another, as an accelerator would.
    image = chain.to('meta')(torch.rand(40, 3, 12, 12, device='meta'))
    assert image.device.type == 'meta'
