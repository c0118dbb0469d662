"""Targets: laws of Sinkhorn-Knopp, on one process and on two."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.functional import (
    centered_softmax,
    sinkhorn_knopp,
    sinkhorn_knopp_,
)

RANK = """
import sys, torch
import torch.distributed as dist
from torchgeo_explora.functional.assignments import sinkhorn_knopp
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
store = f'file://{folder}/store'
dist.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
jobs = torch.load(f'{folder}/jobs.pt')
targets = [sinkhorn_knopp(rows[rank], temperature) for rows, temperature in jobs]
torch.save(targets, f'{folder}/{rank}.pt')
dist.destroy_process_group()
"""


def naive(logits, temperature, iterations=3):
    """Alternate the two scalings on a float64 matrix, with nothing subtracted."""
    mass = (logits.double() / temperature).exp()
    for _ in range(iterations):
        mass = mass / mass.sum(0)
        mass = mass / mass.sum(1, keepdim=True)
    return mass.float()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ('temperature', 'expected'),
    [
        (0.07, [[0.845224, 0.144882, 0.009894], [0.008714, 0.452841, 0.538445]]),
        (0.04, [[0.974578, 0.025248, 0.000175], [0.000864, 0.493068, 0.506068]]),
    ],
)
def test_three_iterations_give_the_published_numbers(temperature, expected):
    logits = torch.tensor([[0.2, 0.1, -0.3], [0.0, 0.3, 0.1]])
    target = sinkhorn_knopp(logits, temperature)
    assert_close(target, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize('kind', ['dino', 'ibot'])
@pytest.mark.parametrize('iterations', [1, 3, 10])
def test_targets_equal_the_references(kind, iterations, golden):
    arrays, config = golden('dino_losses')
    logits = arrays[f'in.{"sk_dino" if kind == "dino" else "ibot"}.teacher_logits']
    target = sinkhorn_knopp(logits, config['teacher_temp'], iterations)
    assert_close(target, arrays[f'out.sk_{kind}.iters{iterations}'])


@pytest.mark.parametrize(('rows', 'prototypes'), [(6, 40), (40, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize('temperature', [0.04, 0.07, 1.0])
def test_targets_equal_the_plain_algorithm(rows, prototypes, temperature, generator):
    logits = torch.rand(rows, prototypes, generator=generator) * 2 - 1
    target = sinkhorn_knopp(logits, temperature)
    assert target.dtype == torch.float32
    assert_close(target, naive(logits, temperature))
    assert_close(target.sum(1), torch.ones(rows))


def test_many_iterations_give_every_prototype_the_same_mass(generator):
    target = sinkhorn_knopp(torch.rand(12, 4, generator=generator), 0.1, 200)
    assert_close(target.sum(0), torch.full((4,), 3.0))


def test_logits_beyond_the_range_of_the_exponential_are_no_trouble(generator):
    logits = torch.rand(8, 16, generator=generator)
    far = logits + 100 * torch.randn(16, generator=generator)
    # A constant per prototype is divided out; what is left is rounding of the sum.
    assert_close(sinkhorn_knopp(far, 0.05), naive(logits, 0.05), atol=1e-3, rtol=1e-2)
    assert_close(
        sinkhorn_knopp(logits + 64, 0.05), naive(logits, 0.05), atol=1e-4, rtol=1e-3
    )


def test_the_order_of_rows_and_prototypes_is_kept(generator):
    logits = torch.rand(7, 9, generator=generator)
    rows, columns = (torch.randperm(n, generator=generator) for n in (7, 9))
    target = sinkhorn_knopp(logits, 0.06)
    shuffled = sinkhorn_knopp(logits[rows][:, columns], 0.06)
    assert_close(shuffled, target[rows][:, columns])


def test_logits_stay_as_they_are_and_get_no_gradient(generator):
    logits = torch.rand(4, 5, generator=generator).requires_grad_()
    before = logits.detach().clone()
    assert not sinkhorn_knopp(logits, 0.05).requires_grad
    assert torch.equal(logits, before)


def test_half_precision_logits_are_assigned_in_float32(generator):
    logits = torch.rand(6, 30, generator=generator).bfloat16()
    expected = sinkhorn_knopp(logits.float(), 0.05)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(sinkhorn_knopp(logits, 0.05), expected)


def test_no_rows_give_no_targets():
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.05).shape == (0, 5)


def test_no_iteration_is_refused():
    with pytest.raises(ValueError, match='iterations'):
        sinkhorn_knopp(torch.zeros(2, 3), 0.05, 0)


def test_two_ranks_assign_their_rows_as_one_batch(golden, generator, tmp_path):
    arrays, config = golden('dino_dist2')
    temperature = config['teacher_temp']
    wide = torch.randn(9, 20, generator=generator)
    jobs = [
        ([arrays[f'in.r{rank}.{kind}_logits'] for rank in (0, 1)], temperature)
        for kind in ('dino', 'ibot')
    ]
    # Uneven, and a rank without rows: it still joins the collectives.
    jobs += [([wide[:2], wide[2:]], 0.2), ([wide, wide[:0]], 0.2)]
    torch.save(jobs, tmp_path / 'jobs.pt')
    command = [sys.executable, '-c', RANK, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    results = [torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1)]
    for rank, result in enumerate(results):
        assert_close(result[0], arrays[f'out.r{rank}.sk_dino'])
        assert_close(result[1], arrays[f'out.r{rank}.sk_ibot'])
    for (rows, temperature), *parts in zip(jobs, *results, strict=True):
        single = sinkhorn_knopp(torch.cat(rows), temperature)
        assert_close(torch.cat(parts), single)


@pytest.mark.parametrize('kind', ['dino', 'ibot'])
@pytest.mark.parametrize('step', [0, 1, 2])
def test_centred_targets_equal_the_references(kind, step, golden):
    arrays, config = golden('dino_losses')
    center = arrays[f'out.center_{kind}.center_used.{step}'].flatten()
    logits = arrays[f'in.center_{kind}.teacher_logits.{step}']
    target = centered_softmax(logits, center, config['teacher_temp'])
    assert_close(target, arrays[f'out.center_{kind}.probs.{step}'])


def test_centred_targets_ignore_a_constant_added_to_the_centre(generator):
    logits, center = (torch.rand(*s, generator=generator) for s in ((3, 8), (8,)))
    target = centered_softmax(logits, center, 0.05)
    assert_close(target.sum(1), torch.ones(3))
    assert_close(
        centered_softmax(logits, center + 1, 0.05), target, atol=1e-5, rtol=1e-4
    )
    assert centered_softmax(logits.bfloat16(), center, 0.05).dtype == torch.float32


def test_sinkhorn_keeps_a_row_far_below_the_others():
    """Such a row's exponentials vanish in float32; float64 has the answer."""
    logits = torch.randn((6, 8), generator=torch.Generator().manual_seed(0)) * 0.1
    logits[2] -= 4.0
    truth = sinkhorn_knopp(logits.double(), 0.02)
    torch.testing.assert_close(
        sinkhorn_knopp(logits, 0.02), truth.float(), rtol=1e-3, atol=1e-5
    )


def test_targets_in_place_are_the_same_to_the_bit():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    kept = logits.clone()
    expected = sinkhorn_knopp(logits, 0.05)
    assert torch.equal(logits, kept)
    rows = logits[:]
    assert sinkhorn_knopp_(rows, 0.05) is rows
    assert torch.equal(logits, expected)
