import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from torchgeo_explora.augment.crops import (
    _by_products,
    _one_by_one,
    crop_boxes,
    quarter_turns,
    random_crops,
    resized_crops,
)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize('method', [_one_by_one, _by_products])
@pytest.mark.parametrize(
    ('image_size', 'size', 'scale'),
    [
        ((64, 64), 96, (0.32, 1.0)),
        ((64, 80), 48, (0.05, 0.32)),
        ((300, 211), 40, (0.05, 1.0)),
        ((5, 7), 16, (0.05, 1.0)),
    ],
)
def test_crops_equal_torchvisions_antialiased_bicubic(method, image_size, size, scale):
    image = torch.rand(3, 2, *image_size)
    boxes = crop_boxes(12, image_size, scale).view(4, 3, 4)
    mirrored = torch.rand(4, 3) < 0.5
    crops = method(image, boxes, mirrored, size)
    assert crops.shape == (4, 3, 2, size, size)
    for view in range(4):
        for index in range(3):
            expected = TF.resized_crop(
                image[index],
                *boxes[view, index].tolist(),
                [size, size],
                InterpolationMode.BICUBIC,
                antialias=True,
            )
            if mirrored[view, index]:
                expected = expected.flip(-1)
            # torch's kernel rounds its positions in float32.
            assert_close(crops[view, index], expected, atol=2e-5, rtol=0)


def test_overshoot_is_clamped():
    image = (torch.rand(1, 3, 16, 16) < 0.5).float()
    box = torch.tensor([[[0, 0, 16, 16]]])
    still = torch.zeros(1, 1, dtype=torch.bool)
    assert _one_by_one(image, box, still, 40).max() > 1
    crops = resized_crops(image, box, still, 40)
    assert crops.min() == 0
    assert crops.max() == 1


@pytest.mark.parametrize('image_size', [(224, 224), (60, 300), (300, 60), (64, 90)])
@pytest.mark.parametrize('scale', [(0.32, 1.0), (0.05, 0.32)])
def test_boxes_follow_torchvisions_law(image_size, scale):
    count = 3000
    boxes = crop_boxes(count, image_size, scale)
    assert boxes.shape == (count, 4)
    assert boxes.dtype == torch.int64
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    ends = boxes[:, :2] + boxes[:, 2:]
    assert (ends <= torch.tensor(image_size)).all()

    canvas = torch.zeros(1, *image_size)
    expected = torch.tensor(
        [
            RandomResizedCrop.get_params(canvas, list(scale), [3 / 4, 4 / 3])
            for _ in range(count)
        ]
    )
    levels = torch.linspace(0.05, 0.95, 10)
    for ours, theirs in zip(boxes.T.float(), expected.T.float(), strict=True):
        # Four standard errors of the difference of two medians.
        tolerance = 4 * 1.25 * theirs.std().item() * (2 / count) ** 0.5 + 1
        assert_close(
            ours.quantile(levels), theirs.quantile(levels), atol=3 * tolerance, rtol=0
        )
        assert_close(ours.mean(), theirs.mean(), atol=tolerance, rtol=0)


def test_a_box_that_cannot_fit_is_the_largest_in_the_centre():
    boxes = crop_boxes(50, (10, 1000), (1.0, 1.0))
    assert (boxes == torch.tensor([0, (1000 - 13) // 2, 10, 13])).all()


def test_every_crop_of_every_image_has_its_own_box():
    ramp = torch.arange(64.0).expand(1, 1, 64, 64) / 64
    crops = random_crops(ramp.expand(8, -1, -1, -1), 4, 16, (0.1, 0.5))
    assert crops.shape == (4, 8, 1, 16, 16)
    assert len(crops.flatten(0, 1).mean((1, 2, 3)).unique()) > 24


def test_half_of_the_crops_are_mirrored():
    ramp = torch.arange(32.0).expand(500, 1, 32, 32) / 32
    crops = random_crops(ramp, 4, 8, (0.5, 1.0))
    mirrored = (crops[..., 0] > crops[..., -1]).float().mean()
    assert_close(mirrored.item(), 0.5, atol=0.05, rtol=0)


@pytest.mark.parametrize('method', [_one_by_one, _by_products])
def test_no_views_give_an_empty_tensor(method):
    image = torch.rand(3, 2, 8, 8)
    none = torch.zeros(0, 3, 4, dtype=torch.int64)
    crops = method(image, none, torch.zeros(0, 3, dtype=torch.bool), 16)
    assert crops.shape == (0, 3, 2, 16, 16)


def test_products_keep_to_the_device_of_the_image():
    # The meta device refuses to mix with another, as an accelerator would.
    image = torch.rand(3, 2, 20, 20, device='meta')
    crops = random_crops(image, 4, 16, (0.1, 0.5))
    assert crops.shape == (4, 3, 2, 16, 16)
    assert crops.device.type == 'meta'


def test_quarter_turns_have_equal_chances_and_keep_every_pixel():
    """Overhead views: with mirroring, all eight symmetries of a square."""
    crops = torch.arange(16.0).view(1, 1, 1, 4, 4).repeat(5, 400, 1, 1, 1)
    torch.manual_seed(0)
    turned = quarter_turns(crops.clone()).flatten(0, 1)[:, 0]
    expected = [crops[0, 0, 0].rot90(count, (-2, -1)) for count in range(4)]
    counts = [int((turned == each).flatten(1).all(1).sum()) for each in expected]
    assert sum(counts) == 2000
    assert all(400 < count < 600 for count in counts)
