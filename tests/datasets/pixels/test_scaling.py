import pytest
import torch
from torch.utils.data import Dataset

from torchgeo_explora.datasets import measure_range
from torchgeo_explora.datasets.pixels.scaling import check_range, to_unit


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {'image': self.images[index]}


def test_range_of_plain_numbers_stays_plain():
    assert check_range([0, 255], 'rgb') == (0.0, 255.0)
    assert check_range([[0, 1], 9], 'ab') == ((0.0, 1.0), (9.0, 9.0))


@pytest.mark.parametrize('value_range', [(1,), (3, 2), ([0, 5], [5, 5]), (0, 1, 2)])
def test_range_must_rise(value_range):
    with pytest.raises(ValueError, match=r'\*value_range\* must be \(low, high\)'):
        check_range(value_range, 'ab')


def test_to_unit_clips_per_band():
    image = torch.tensor([0.0, 5, 10, 15]).view(1, 2, 2).expand(2, 2, 2)
    unit = to_unit(image, ((0.0, 5.0), (10.0, 15.0)))
    torch.testing.assert_close(unit[0].flatten(), torch.tensor([0, 0.5, 1, 1]))
    torch.testing.assert_close(unit[1].flatten(), torch.tensor([0, 0, 0.5, 1]))


def test_measured_range_is_two_deviations_around_the_mean():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 2, 16, 16, generator=generator)
    images = images * torch.tensor([100.0, 1]).view(2, 1, 1) + 1000
    low, high = measure_range(Images(images), images=30)
    torch.testing.assert_close(
        torch.tensor([low, high]),
        torch.tensor([[800.0, 998], [1200, 1002]]),
        rtol=0.01,
        atol=0.1,
    )


def test_measured_range_stays_above_the_lowest_value():
    images = torch.zeros(3, 1, 4, 4)
    images[0, 0, 0, 0] = 9
    low, high = measure_range(Images(images))
    assert low == (0.0,)
    assert 0 < high[0] < 9
    low, high = measure_range(Images(torch.ones(2, 1, 4, 4)))
    assert low[0] < high[0]
