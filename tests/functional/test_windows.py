"""Overlapping windows over a large image."""

import pytest
import torch
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from torchgeo_explora.functional.windows import blend_weight, slide, window_starts


@pytest.mark.parametrize(
    ('length', 'size', 'stride'), [(5, 8, 8), (20, 8, 6), (16, 8, 8)]
)
def test_windows_cover_an_axis_and_none_is_idle(length, size, stride):
    starts = window_starts(length, size, stride)
    seen = {place for start in starts for place in range(start, start + size)}
    assert set(range(length)) <= seen
    assert all(start % stride == 0 for start in starts)
    assert len(starts) == 1 or starts[-2] + size < length


@pytest.mark.parametrize('stride', [0, 9])
def test_gaps_are_an_error(stride):
    with pytest.raises(ValueError, match=r'\*stride\*'):
        window_starts(20, 8, stride)


def test_weight_is_positive_and_largest_in_the_middle():
    weight = blend_weight(7)
    assert weight.min() > 0
    assert weight.argmax() == 24


@pytest.mark.parametrize('cell', [1, 4])
def test_a_local_score_is_that_of_the_whole_image(cell):
    image = torch.rand(2, 3, 28, 44)
    whole = avg_pool2d(image, cell)
    blended = slide(image, 16, 12, lambda window: avg_pool2d(window, cell), cell)
    assert_close(blended, whole)


def test_windows_past_the_edge_see_its_last_pixels():
    image = torch.arange(30.0).view(1, 1, 5, 6)
    seen = []

    def score(windows):
        seen.append(windows)
        return windows

    slide(image, 8, 8, score)
    (window,) = torch.cat(seen)
    assert torch.equal(window[0, :5, :6], image[0, 0])
    assert torch.equal(window[0, 5:], window[0, 4:5].expand(3, -1))
    assert torch.equal(window[0, :, 6:], window[0, :, 5:6].expand(-1, 2))


def test_windows_at_once_change_nothing():
    image = torch.rand(1, 1, 30, 30)
    one, many = (slide(image, 8, 6, torch.sin, batch=batch) for batch in (1, 100))
    assert_close(one, many)


def test_windows_without_data_are_not_scored():
    image, valid = torch.rand(1, 1, 16, 32), torch.ones(16, 32, dtype=torch.bool)
    valid[:, 16:] = False
    scored = []

    def score(windows):
        scored.append(len(windows))
        return windows

    blended = slide(image, 8, 8, score, valid=valid)
    assert sum(scored) == 4
    assert_close(blended[..., :16], image[..., :16])
    assert blended[..., 16:].isnan().all()
    assert slide(image, 8, 8, score, valid=valid & False).shape == (1, 0, 16, 32)


def test_a_window_that_does_not_fit_the_cell_is_an_error():
    with pytest.raises(ValueError, match='multiples of 4 pixels'):
        slide(torch.rand(1, 1, 8, 8), 8, 6, torch.sin, cell=4)
