import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.datasets.pixels.picture import fit_square


@pytest.mark.parametrize('shape', [(20, 30), (30, 20), (20, 20), (7, 5), (41, 97)])
@pytest.mark.parametrize('size', [5, 20, 24])
def test_any_shape_becomes_a_square_of_the_same_values(shape, size):
    image = torch.full((2, *shape), 7.0)
    assert_close(fit_square(image, size), torch.full((2, size, size), 7.0))


def test_centre_is_kept():
    image = torch.arange(30.0).expand(1, 20, 30)
    assert torch.equal(fit_square(image, 20)[0, 0], torch.arange(5.0, 25.0))
    assert fit_square(image, 20).is_contiguous()
    # Twice as small: pairs of columns; of the 15, two on the left and three are cut.
    halves = torch.arange(4.5, 24, 2)
    assert_close(fit_square(image, 10)[0, 5], halves, atol=0.2, rtol=0)


def test_pixels_without_data_are_not_mixed_with_others():
    image = torch.full((2, 40, 40), 3000.0)
    image[:, :, :9] = 0
    image[0, :, 30] = 0  # in one band: a value like any other
    resized = fit_square(image, 13, no_data=0)
    known = resized[1][resized[1] != 0]
    assert_close(known, torch.full_like(known, 3000.0))
    assert (resized[1] == 0).any(0).tolist() == [True] * 4 + [False] * 9
    assert ((resized[0, :, 9:11] > 0) & (resized[0, :, 9:11] < 3000)).any()


@pytest.mark.parametrize('low', [0.0, -30.0])
def test_no_band_leaves_the_range_of_its_values(low):
    """White became 255.00002, which cannot be written as a JPEG."""
    image = torch.full((3, 97, 131), 255.0)
    image[1] = low
    image[2, ::2] = low
    for size in (8, 13, 32, 60, 90, 224):
        resized = fit_square(image, size)
        assert resized.max() <= 255
        assert resized.min() >= low
        assert torch.equal(resized[0], torch.full((size, size), 255.0))
