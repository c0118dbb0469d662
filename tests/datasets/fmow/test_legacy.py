import pytest
import torch

from torchgeo_explora.datasets.fmow.legacy import legacy_members, legacy_stack


def ramp(height, width, level=0.0):
    """An image whose value is its column, plus a level."""
    return level + torch.arange(width).float().expand(1, height, width)


@pytest.mark.parametrize(('siblings', 'members'), [([], (5, 5, 5)), ([7], (5, 7, 7))])
def test_too_few_images_repeat(siblings, members):
    assert legacy_members(5, siblings) == members


def test_two_others_are_drawn_without_repetition():
    torch.manual_seed(0)
    draws = {legacy_members(5, [1, 2, 3]) for _ in range(200)}
    # All ordered pairs of three others.
    assert draws == {(5, a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}


def test_wide_images_are_trimmed_from_the_left():
    torch.manual_seed(0)
    images = [ramp(8, 20), ramp(8, 12, 100), ramp(8, 16, 200)]
    seen = set()
    for _ in range(60):
        stack = legacy_stack(images, 8)
        assert stack.shape == (3, 1, 8, 8)
        starts = [int(stack[i, 0, 0, 0]) - 100 * i for i in range(3)]
        # One crop for all three, within the narrowest one.
        assert len(set(starts)) == 1
        seen.add(starts[0])
    assert seen == {0, 1, 2, 3, 4}


def test_high_images_are_trimmed_from_the_top():
    images = [ramp(size, 8).mT.contiguous().mT for size in (20, 12, 16)]
    images = [torch.arange(n).float()[:, None].expand(1, n, 8) for n in (20, 12, 16)]
    torch.manual_seed(0)
    starts = {float(legacy_stack(images, 8)[2, 0, 0, 0]) for _ in range(60)}
    assert starts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize('shapes', [[(8, 8)] * 3, [(8, 20), (20, 8), (8, 20)]])
def test_square_or_mixed_images_leave_the_first_three_times(shapes):
    images = [ramp(*shape, 100 * i) for i, shape in enumerate(shapes)]
    stack = legacy_stack(images, 8)
    assert torch.equal(stack[0], stack[1])
    assert torch.equal(stack[0], stack[2])
    assert stack.max() < 100


def test_shorter_sides_are_resized_without_antialiasing():
    images = [torch.rand(3, 16, 24, generator=torch.manual_seed(i)) for i in range(3)]
    stack = legacy_stack(images, 8)
    # Halving without antialiasing is the mean of the four pixels in the middle.
    halved = torch.nn.functional.avg_pool2d(torch.stack(images), 2)
    assert any(
        torch.allclose(stack, halved[..., left : left + 8], atol=1e-6)
        for left in range(5)
    )
