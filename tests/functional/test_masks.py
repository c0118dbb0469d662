"""Masks: counts, shapes and the statistics of DINOv2's generator."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.functional import block_masks, masks, random_mask, visible_indices
from torchgeo_explora.functional.masks import _block, _blocks, _uniforms

DRAWS = 2000
RANGES = [
    ('grid16', (16, 16), '0.1-0.5'),
    ('grid16', (16, 16), '0.1-0.2'),
    ('grid16', (16, 16), '0.4-0.5'),
    ('grid14', (14, 14), '0.1-0.5'),
    ('grid14', (14, 14), '0.3-0.3'),
]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize('ratio', [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize('tokens', [16, 49, 196])
def test_random_mask_keeps_the_floor_of_the_share(ratio, tokens, generator):
    mask = random_mask(torch.rand(5, tokens, generator=generator), ratio)
    assert mask.dtype == torch.bool
    assert ((~mask).sum(1) == int(tokens * (1 - ratio))).all()


@pytest.mark.parametrize(('tokens', 'keep'), [(196, 49), (432, 108), (588, 147)])
def test_random_mask_keeps_the_published_counts(tokens, keep):
    assert (~random_mask(torch.rand(1, tokens), 0.75)).sum() == keep


def test_random_mask_hides_the_largest_noise(golden):
    arrays, config = golden('patches')
    mask = random_mask(arrays['in.mae.noise'], config['mae']['mask_ratio'])
    assert torch.equal(mask, arrays['out.mae.mask'].bool())
    kept = arrays['out.mae.ids_keep'].sort(1).values
    assert torch.equal(visible_indices(mask), kept)


def test_random_mask_keeps_the_count_where_noise_is_equal():
    assert (~random_mask(torch.zeros(3, 16), 0.75)).sum(1).tolist() == [4, 4, 4]


@pytest.mark.parametrize('ratio', [-0.1, 0.0, 1.0, 75])
def test_random_mask_refuses_other_ratios(ratio):
    with pytest.raises(ValueError, match='ratio'):
        random_mask(torch.rand(1, 4), ratio)


def test_visible_indices_are_where_the_mask_is_false(generator):
    mask = random_mask(torch.rand(4, 12, generator=generator), 0.5)
    index = visible_indices(mask)
    assert index.dtype == torch.int64
    rebuilt = torch.ones_like(mask).scatter_(1, index, False)
    assert torch.equal(rebuilt, mask)


def test_visible_indices_of_a_full_mask_are_empty():
    assert visible_indices(torch.ones(2, 4, dtype=torch.bool)).shape == (2, 0)


def test_visible_indices_refuse_uneven_rows():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match=r'\[1, 2\]'):
        visible_indices(mask)


@pytest.mark.parametrize('grid', [(16, 16), (7, 7), (4, 12), (37, 20), (2, 2)])
@pytest.mark.parametrize(('crops', 'probability'), [(9, 0.5), (4, 1.0), (3, 0.0)])
def test_a_share_of_the_crops_hides_at_most_its_part(
    grid, crops, probability, generator
):
    mask = block_masks(crops, grid, probability, (0.2, 0.6), generator)
    tokens = grid[0] * grid[1]
    assert mask.shape == (crops, tokens)
    assert mask.dtype == torch.bool
    counts, _ = mask.sum(1).sort()
    masked = int(crops * probability)
    assert (counts[: crops - masked] == 0).all()
    parts = torch.linspace(0.2, 0.6, masked + 1)[1:]
    # Small grids may fall short, so that the order of counts is not that of the parts.
    assert counts[crops - masked :].sum() <= (tokens * parts).int().sum()
    assert (counts <= int(tokens * 0.6)).all()


def test_masked_rows_are_not_always_the_first(generator):
    first = [
        bool(block_masks(4, (8, 8), generator=generator)[0].any()) for _ in range(9)
    ]
    assert len(set(first)) == 2


def test_equal_generators_give_equal_masks():
    masks = [
        block_masks(8, (16, 16), generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_only_the_given_generator_moves(generator):
    state = torch.get_rng_state()
    block_masks(8, (16, 16), generator=generator)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_default_generator_is_torchs():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = block_masks(8, (16, 16))
        torch.manual_seed(1)
        assert torch.equal(block_masks(8, (16, 16)), first)


@pytest.mark.parametrize('probability', [-0.1, 1.1])
def test_probabilities_outside_the_unit_interval_are_refused(probability):
    with pytest.raises(ValueError, match='probability'):
        block_masks(2, (4, 4), probability)


@pytest.mark.parametrize('ratio', [(-0.1, 0.5), (0.5, 0.1), (0.5, 1.5)])
def test_ratios_that_are_no_range_are_refused(ratio):
    with pytest.raises(ValueError, match='ratio'):
        block_masks(2, (4, 4), ratio=ratio)


def error(*samples):
    """Four standard errors of the difference of two means, the default tolerance."""
    return 4 * sum(x.double().var() / len(x) for x in samples).sqrt().item() + 1e-9


@pytest.mark.parametrize(('name', 'grid', 'ratio'), RANGES)
def test_masks_fall_short_as_often_as_the_reference(
    name, grid, ratio, golden, generator
):
    arrays, _ = golden('dinov2_masking')
    requested = arrays[f'out.{name}.range{ratio}.requested'].double()
    theirs = requested - arrays[f'out.{name}.range{ratio}.masked']
    uniform = _uniforms(generator)
    counts = [_blocks(int(n), grid, uniform).bit_count() for n in requested]
    ours = requested - torch.tensor(counts)
    assert (ours >= 0).all()
    assert_close(ours.mean(), theirs.mean(), atol=error(ours, theirs), rtol=0)
    ours, theirs = (ours == 0).double(), (theirs == 0).double()
    assert_close(ours.mean(), theirs.mean(), atol=error(ours, theirs), rtol=0)


@pytest.mark.parametrize(('name', 'grid', 'ratio'), RANGES)
def test_masks_cover_as_much_and_where_the_reference_does(
    name, grid, ratio, golden, generator
):
    arrays, _ = golden('dinov2_masking')
    bounds = tuple(map(float, ratio.split('-')))
    mask = block_masks(DRAWS, grid, 1.0, bounds, generator).double()
    mean, deviation = arrays[f'out.{name}.range{ratio}.masked_fraction_mean_std']
    fraction = mask.mean(1)
    tolerance = 4 * deviation.item() * (2 / DRAWS) ** 0.5
    assert_close(fraction.mean(), mean, atol=tolerance, rtol=0)
    assert_close(fraction.std(), deviation, atol=tolerance, rtol=0.05)
    # 5 standard errors, since the largest of some 250 cells is compared.
    occupancy = arrays[f'out.{name}.range{ratio}.occupancy'].flatten()
    tolerance = 5 * (2 * (occupancy * (1 - occupancy)) / DRAWS).sqrt()
    assert ((mask.mean(0) - occupancy).abs() < tolerance).all()


@pytest.mark.parametrize(('name', 'grid'), [('grid16', (16, 16)), ('grid14', (14, 14))])
def test_blocks_have_the_references_shapes(name, grid, golden, generator):
    arrays, config = golden('dinov2_masking')
    budget = int(config['generators'][name]['block_cap'])
    uniform = _uniforms(generator)
    blocks = []
    for _ in range(DRAWS):
        bits = f'{_block(0, budget, grid, uniform):0{grid[0] * grid[1]}b}'[::-1]
        cells = torch.tensor([bit == '1' for bit in bits]).view(grid).nonzero()
        top, left = cells.min(0).values.tolist()
        height, width = (cells.max(0).values - cells.min(0).values + 1).tolist()
        assert len(cells) == height * width <= budget
        blocks.append((top, left, height, width))
    ours = torch.tensor(blocks).double()
    theirs = arrays[f'out.{name}.blocks.top_left_h_w'].double()
    for a, b in ((ours, theirs), (ours.square(), theirs.square())):
        for x, y in zip(a.T, b.T, strict=True):
            assert_close(x.mean(), y.mean(), atol=error(x, y), rtol=0)
    area, aspect = ours[:, 2] * ours[:, 3], (ours[:, 2] / ours[:, 3]).log()
    rows = arrays[f'out.{name}.blocks.mean_std_h_w_logaspect_area'][2:]
    for x, (mean, deviation) in zip((aspect, area), rows, strict=True):
        tolerance = 4 * deviation.item() * (2 / DRAWS) ** 0.5
        assert_close(x.mean(), mean, atol=tolerance, rtol=0)
        assert_close(x.std(), deviation, atol=0, rtol=0.08)


def test_a_batch_has_the_references_counts(golden, generator):
    arrays, config = golden('dinov2_masking')
    settings = config['collates']['collA']
    theirs = arrays['out.collA.masked_counts'].double().sort(1).values
    crops = 2 * settings['B']
    ours = torch.stack(
        [
            block_masks(
                crops, (16, 16), settings['prob'], settings['ratio'], generator
            ).sum(1)
            for _ in range(settings['reps'])
        ]
    )
    ours = ours.double().sort(1).values
    assert ours.sum(1).max() <= arrays['out.collA.upperbound']
    for x, y in zip(ours.T, theirs.T, strict=True):
        assert_close(x.mean(), y.mean(), atol=error(x, y), rtol=0)


def test_blocks_cover_half_of_the_tokens_at_most(generator, monkeypatch):
    budgets = []

    def spy(hidden, budget, *rest):
        budgets.append(budget)
        block = _block(hidden, budget, *rest)
        assert (block & ~hidden).bit_count() <= budget
        return block

    monkeypatch.setattr(masks, '_block', spy)
    counts = block_masks(50, (8, 8), 1.0, (0.9, 0.9), generator).sum(1)
    assert max(budgets) == 32
    assert counts.max() > 32


def test_a_block_on_a_non_square_grid_is_a_rectangle(generator):
    uniform = _uniforms(generator)
    reached = 0
    for _ in range(300):
        block = _block(0, 33, (6, 11), uniform)
        rows = [block >> 11 * row & 0x7FF for row in range(6)]
        # The same run of ones in every row that has any, and never a whole row.
        (run,) = {row for row in rows if row}
        run //= run & -run
        assert run & (run + 1) == 0
        assert run.bit_length() < 11
        assert not all(rows)
        reached |= block
    assert reached == (1 << 66) - 1
