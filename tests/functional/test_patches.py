"""Laws of patches and tokens, and MAE's and SatMAE's order of values."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.functional import (
    gather_tokens,
    patchify,
    replace_tokens,
    scatter_tokens,
    unpatchify,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize('order', ['hwc', 'chw'])
@pytest.mark.parametrize('size', [(8, 8), (8, 12)])
def test_unpatchify_is_the_inverse_of_patchify(order, size, generator):
    image = torch.rand(2, 5, *size, generator=generator)
    patches = patchify(image, 4, order)
    grid = (size[0] // 4, size[1] // 4)
    assert patches.shape == (2, grid[0] * grid[1], 80)
    assert torch.equal(unpatchify(patches, 4, order, grid), image)


def test_unpatchify_takes_a_square_grid_by_default(generator):
    image = torch.rand(2, 3, 8, 8, generator=generator)
    assert torch.equal(unpatchify(patchify(image, 2), 2), image)


def test_patches_are_row_major_and_ordered_inside_as_named(generator):
    image = torch.rand(1, 3, 4, 6, generator=generator)
    corner = image[0, :, 2:, 2:4]  # patch at row 1, column 1 of a 2 x 3 grid
    assert torch.equal(patchify(image, 2, 'chw')[0, 4], corner.flatten())
    swapped = corner.permute(1, 2, 0).flatten()
    assert torch.equal(patchify(image, 2)[0, 4], swapped)


def test_patches_equal_the_references(golden):
    arrays, config = golden('patches')
    size = config['mae']['model']['patch_size']
    assert torch.equal(
        patchify(arrays['in.mae.imgs'], size), arrays['out.mae.patchify']
    )
    image = unpatchify(arrays['in.mae.patch_rows'], size)
    assert torch.equal(image, arrays['out.mae.unpatchify'])
    size = config['satmae']['model']['patch_size']
    patches = patchify(arrays['in.satmae.imgs'], size, 'chw')
    assert torch.equal(patches, arrays['out.satmae.patchify'])


def test_patchify_says_which_size_fits():
    with pytest.raises(ValueError, match=r'\(225, 225\).*patch_size 14.*\(224, 224\)'):
        patchify(torch.zeros(1, 3, 225, 225), 14)


def test_unknown_orders_are_refused():
    with pytest.raises(ValueError, match="'hwc' or 'chw'"):
        patchify(torch.zeros(1, 3, 4, 4), 2, 'whc')


def test_unpatchify_refuses_patches_that_do_not_fit():
    with pytest.raises(ValueError, match='6 patches'):
        unpatchify(torch.zeros(1, 6, 12), 2)
    with pytest.raises(ValueError, match='13 values'):
        unpatchify(torch.zeros(1, 4, 13), 2)


def test_gather_picks_tokens_in_the_order_of_the_index(generator):
    tokens = torch.rand(3, 7, 4, generator=generator)
    index = torch.stack([torch.randperm(7, generator=generator)[:5] for _ in range(3)])
    picked = gather_tokens(tokens, index)
    for image in range(3):
        assert torch.equal(picked[image], tokens[image, index[image]])


def test_gather_shares_a_single_row_of_tokens(generator):
    position = torch.rand(1, 7, 4, generator=generator)
    index = torch.tensor([[0, 6], [3, 2]])
    expected = gather_tokens(position.expand(2, -1, -1), index)
    assert torch.equal(gather_tokens(position, index), expected)


def test_scatter_puts_gathered_tokens_back_among_the_fill(generator):
    tokens = torch.rand(2, 6, 4, generator=generator)
    index = torch.tensor([[5, 0, 3], [1, 2, 4]])
    fill = torch.full((4,), -1.0)
    result = scatter_tokens(gather_tokens(tokens, index), index, fill, 6)
    visible = torch.zeros(2, 6, dtype=torch.bool).scatter_(1, index, True)
    assert torch.equal(result[visible], tokens[visible])
    assert (result[~visible] == -1).all()


def test_scatter_keeps_the_type_of_the_tokens():
    tokens, index = torch.ones(1, 1, 2, dtype=torch.bfloat16), torch.tensor([[1]])
    found = scatter_tokens(tokens, index, torch.tensor([2.0, 3.0]), 2)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[[2, 3], [1, 1]]]


def test_scatter_passes_gradients_to_tokens_and_fill():
    tokens = torch.zeros(2, 3, 4, requires_grad=True)
    fill = torch.zeros(1, 1, 4, requires_grad=True)
    index = torch.tensor([[5, 0, 3], [1, 2, 4]])
    scatter_tokens(tokens, index, fill, 6).sum().backward()
    assert_close(tokens.grad, torch.ones(2, 3, 4))
    assert_close(fill.grad, torch.full((1, 1, 4), 6.0))


@pytest.mark.parametrize('shape', [(4,), (1, 4), (1, 1, 4)])
def test_replace_changes_hidden_tokens_only(shape, generator):
    content = torch.rand(2, 6, 4, generator=generator)
    mask = torch.rand(2, 6, generator=generator) < 0.5
    result = replace_tokens(content, mask, torch.full(shape, 7.0))
    assert torch.equal(result[~mask], content[~mask])
    assert (result[mask] == 7).all()


def test_replace_keeps_the_type_of_the_content():
    content = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    mask = torch.tensor([[True, False]])
    assert replace_tokens(content, mask, torch.ones(3)).dtype == torch.bfloat16


def test_replace_refuses_a_mask_of_another_shape():
    with pytest.raises(ValueError, match='mask'):
        replace_tokens(torch.zeros(2, 6, 4), torch.zeros(2, 5).bool(), torch.zeros(4))
