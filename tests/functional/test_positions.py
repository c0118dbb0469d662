"""Position codes against the references' tables and the vectors of their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from torchgeo_explora.functional import resize_grid, sincos_1d, sincos_2d


def test_sines_come_before_cosines():
    code = sincos_1d(torch.tensor([1]), 8)
    expected = [0.841471, 0.099833, 0.01, 0.001, 0.540302, 0.995004, 0.99995, 1.0]
    assert code.dtype == torch.float32
    assert_close(code, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_angles_are_taken_in_float64():
    """In float32 an angle of 10,000 is off by half a thousandth."""
    code = sincos_1d(torch.tensor([9999.7], dtype=torch.float64), 2)
    expected = [math.sin(9999.7), math.cos(9999.7)]
    assert_close(code, torch.tensor([expected]))


def test_columns_come_before_rows():
    code = sincos_2d((2, 2), 8)
    one, zero = [0.841471, 0.01, 0.540302, 0.99995], [0.0, 0.0, 1.0, 1.0]
    assert_close(code[1], torch.tensor(one + zero), atol=1e-6, rtol=0)
    assert_close(code[2], torch.tensor(zero + one), atol=1e-6, rtol=0)


def test_sincos_1d_equals_the_reference(golden):
    arrays, _ = golden('satmae_pos_embed')
    for dim in (16, 64):
        code = sincos_1d(arrays['in.pos'], dim)
        # Float32 of a float64 result.
        assert_close(code, arrays[f'out.pe1d_torch.dim{dim}'].float())
    assert_close(sincos_1d(torch.arange(3), 16), arrays['out.pe1d.dim16.n3'].float())
    assert_close(sincos_1d(torch.arange(4), 8), arrays['out.pe1d.dim8.n4'].float())


@pytest.mark.parametrize(
    ('file', 'dim', 'side', 'cls'),
    [
        ('mae_pos_embed', 16, 4, 1),
        ('mae_pos_embed', 32, 7, 0),
        ('mae_pos_embed', 64, 3, 1),
        ('satmae_pos_embed', 32, 6, 1),
        ('satmae_pos_embed', 8, 3, 0),
    ],
)
def test_sincos_2d_equals_the_reference(file, dim, side, cls, golden):
    arrays, _ = golden(file)
    table = arrays[f'out.pe2d.dim{dim}.grid{side}.cls{cls}']
    assert_close(sincos_2d((side, side), dim), table[cls:].float())


def test_sincos_keeps_further_axes_of_the_positions():
    positions = torch.arange(6).view(2, 3)
    expected = sincos_1d(positions.flatten(), 4).view(2, 3, 4)
    assert torch.equal(sincos_1d(positions, 4), expected)


def test_sincos_2d_of_a_rectangle_is_part_of_the_square():
    square = sincos_2d((5, 5), 16).view(5, 5, 16)
    assert torch.equal(sincos_2d((2, 5), 16).view(2, 5, 16), square[:2])
    assert torch.equal(sincos_2d((5, 3), 16).view(5, 3, 16), square[:, :3])


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='odd'):
        sincos_1d(torch.arange(3), 7)
    with pytest.raises(ValueError, match='multiple of 4'):
        sincos_2d((2, 2), 6)


@pytest.mark.parametrize(
    ('offset', 'antialias', 'expected'),
    [
        (0.1, False, [1.812153, 3.901161, 10.168186, 12.257192]),
        (None, False, [2.03125, 4.21875, 10.78125, 12.96875]),
        (None, True, [2.933884, 4.760331, 10.239670, 12.066115]),
    ],
)
def test_the_three_rules_of_resizing_differ(offset, antialias, expected):
    position = torch.arange(16.0).view(1, 16, 1)
    result = resize_grid(position, (2, 2), offset, antialias)
    assert_close(result.flatten(), torch.tensor(expected), atol=1e-5, rtol=0)


def test_resizing_equals_maes(golden):
    arrays, _ = golden('mae_pos_embed')
    resized = resize_grid(arrays['in.interp.0'][:, 1:], (6, 6))
    assert_close(resized, arrays['out.interp.0'][:, 1:])


@pytest.mark.parametrize('offset', [None, 0.1])
def test_a_grid_that_fits_is_returned_as_it_is(offset):
    position = torch.rand(1, 12, 2)
    assert resize_grid(position, (3, 4), offset, source=(3, 4)) is position
    square = torch.rand(1, 16, 2)
    assert resize_grid(square, (4, 4), offset) is square


def test_the_count_alone_does_not_make_a_grid_fit():
    position = torch.rand(1, 16, 2)
    assert not torch.equal(resize_grid(position, (2, 8), 0.1), position)


@pytest.mark.parametrize('offset', [None, 0.1])
@pytest.mark.parametrize('grid', [(7, 16), (16, 7), (37, 40)])
def test_resizing_keeps_rows_and_columns_apart(offset, grid):
    rows = torch.linspace(0, 1, 20).view(1, 20, 1, 1).expand(1, 20, 20, 1)
    result = resize_grid(rows.flatten(1, 2), grid, offset).view(*grid)
    assert_close(result, result[:, :1].expand(*grid))
    assert (result[1:, 0] > result[:-1, 0]).all()


def test_resizing_a_rectangle_equals_interpolate():
    position = torch.rand(1, 12, 2, generator=torch.Generator().manual_seed(0))
    image = position.view(1, 3, 4, 2).permute(0, 3, 1, 2)
    image = F.interpolate(image, (5, 2), mode='bicubic')
    expected = image.permute(0, 2, 3, 1).reshape(1, 10, 2)
    assert_close(resize_grid(position, (5, 2), source=(3, 4)), expected)


def test_resizing_keeps_the_type_and_passes_gradients():
    position = torch.rand(1, 16, 2, dtype=torch.bfloat16, requires_grad=True)
    result = resize_grid(position, (3, 5), 0.1)
    assert result.dtype == torch.bfloat16
    result.sum().backward()
    assert position.grad.abs().sum() > 0


def test_a_table_that_is_no_grid_is_refused():
    with pytest.raises(ValueError, match=r'17 position codes.*cls token'):
        resize_grid(torch.zeros(1, 17, 2), (2, 2))
