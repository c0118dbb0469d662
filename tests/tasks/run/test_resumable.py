"""Order and randomness of a run as functions of its seed and its position."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
)

from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.run.resumable import (
    ResumableOrder,
    generator_states,
    mix,
    order_by_epoch,
    restore_generators,
)


@pytest.fixture
def draw(tiny, monkeypatch):
    """Return a function that gives a number drawn in a training step, and its task."""
    tasks = {}

    def drawn(seed=0, rank=0, micro_steps=0):
        if seed not in tasks:
            tasks[seed] = ExploraDinoTask(**tiny, seed=seed)
        task = tasks[seed]
        task.micro_steps = micro_steps
        monkeypatch.setattr(type(task), 'global_rank', rank)
        with task.seeded():
            return torch.rand(()).item(), task

    return drawn


def test_every_seed_rank_and_micro_step_draws_its_own_numbers(draw):
    settings = [(s, r, m) for s in range(2) for r in range(3) for m in range(3)]
    numbers = {draw(*setting)[0] for setting in settings}
    assert len(numbers) == len(settings)
    assert draw(1, 2, 0)[0] == draw(1, 2, 0)[0]
    assert draw(micro_steps=7)[1].micro_steps == 8


def test_a_step_and_an_epoch_leave_the_generator_of_others_alone(draw):
    draw()  # builds the task
    before = torch.get_rng_state()
    draw()
    order = ResumableOrder(RandomSampler(range(9)), lambda: (0, 0), 0)
    assert sorted(order) == list(range(9))
    assert torch.equal(torch.get_rng_state(), before)


def test_mixed_seeds_have_63_bits_and_differ():
    seeds = [mix(a, b) for a in range(20) for b in range(20)]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    # All bits are in use: small numbers make seeds far apart.
    assert max(seeds) > 2**62


@pytest.mark.parametrize(
    'sampler',
    [
        RandomSampler(range(12)),
        DistributedSampler(range(24), num_replicas=2, rank=1, seed=3),
    ],
    ids=['one process', 'two processes'],
)
def test_order_depends_on_seed_and_epoch_and_goes_on_where_it_stopped(sampler):
    def order(epoch, used=0, seed=0):
        torch.manual_seed(used)  # the state of another process
        return list(ResumableOrder(sampler, lambda: (epoch, used), seed))

    first, second = order(0), order(1)
    assert len(first) == len(set(first)) == 12
    assert first != second
    assert order(0, 5) == first[5:]
    assert order(1, 11) == second[11:]
    assert order(1, 12) == []
    if isinstance(sampler, RandomSampler):  # the other one has a seed of its own
        assert order(0, seed=1) != first
    assert len(ResumableOrder(sampler, lambda: (0, 5), 0)) == 12


def test_samplers_with_a_generator_of_their_own_are_seeded_too():
    """TorchGeo's draw places by a NumPy generator."""

    class Places:
        generator = np.random.default_rng(9)

        def __len__(self):
            return 4

        def __iter__(self):
            return iter(self.generator.integers(0, 10**6, 4).tolist())

    own = Places()
    orders = [[*ResumableOrder(own, lambda: (epoch, 0), 0)] for epoch in (0, 1, 0)]  # noqa: B023
    assert orders[0] == orders[2] != orders[1]


def test_a_loader_goes_on_at_the_batch_where_it_stopped():
    place = [0, 0]
    loader = DataLoader(range(12), batch_size=4, shuffle=True)
    assert order_by_epoch(loader, lambda: tuple(place), 0)
    whole = [batch.tolist() for batch in loader]
    place[1] = 2
    assert [batch.tolist() for batch in loader] == whole[2:]
    place[:] = 1, 0
    assert [batch.tolist() for batch in loader] != whole


class Stream(IterableDataset):
    """Data without an order that could be held."""

    def __iter__(self):
        return iter(range(4))


def test_data_without_a_sampler_keep_their_own_order():
    assert not order_by_epoch(DataLoader(Stream(), batch_size=2), lambda: (0, 0), 0)
    batches = [[0, 1], [2, 3]]
    own = DataLoader(range(4), batch_sampler=batches)
    assert not order_by_epoch(own, lambda: (0, 1), 0)
    assert [batch.tolist() for batch in own] == batches
    sampler = BatchSampler(range(4), 2, drop_last=False)
    assert order_by_epoch(
        DataLoader(range(4), batch_sampler=sampler), lambda: (0, 1), 0
    )
    assert [*sampler] == [[2, 3]]


def test_all_global_generators_come_back():
    def numbers():
        return random.random(), np.random.rand(), torch.rand(()).item()

    np.random.randn()  # leaves a second normal number for the next call
    states = generator_states()
    first = (*numbers(), np.random.randn())
    numbers()
    restore_generators(states)
    assert (*numbers(), np.random.randn()) == first


def test_a_checkpoint_may_not_have_an_address_opened(tmp_path, tiny):
    """E33: addresses are fetched for the user, never for a file."""
    path = tmp_path / 'last.ckpt'
    torch.save({'base_weights': 'http://127.0.0.1:9/base.pth'}, path)
    with pytest.raises(ValueError, match=r'may not start a download: pass'):
        ExploraDinoTask.load_from_checkpoint(path)
