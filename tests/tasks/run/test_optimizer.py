"""Where AdamW's fused kernel serves."""

import math

import pytest
import torch

from torchgeo_explora.tasks.run.optimizer import Schedule, may_fuse, optimizer_plan


@pytest.mark.parametrize(
    ('device', 'precision', 'expected'),
    [
        ('cuda', 'bf16-mixed', True),
        ('cuda', '32-true', True),
        # The scaler's factor would meet gradients that are clipped already.
        ('cuda', '16-mixed', False),
        ('cpu', '32-true', False),
    ],
)
def test_fused_kernel_serves_where_nothing_scales_the_loss(device, precision, expected):
    assert may_fuse(torch.device(device), precision) is expected


def test_shares_of_a_run_are_whole_steps_as_in_dinov2():
    """5 % of 30 steps are 1.5: one step of warm-up, and one of standing still."""
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{'params': [weights[0]]}, {'params': [weights[1]], 'still': 0.05}]
    plan = optimizer_plan(groups, 0.1, 30, Schedule(0.01, 0.05), False)
    rates = []
    for _ in range(31):
        rates.append([group['lr'] for group in plan['optimizer'].param_groups])
        plan['optimizer'].step()
        plan['lr_scheduler']['scheduler'].step()
    cosine = [0.01 + 0.09 * (1 + math.cos(math.pi * n / 29)) / 2 for n in range(30)]
    assert [first for first, _ in rates] == pytest.approx([0, *cosine])
    assert [second for _, second in rates] == pytest.approx([0, *cosine])


def test_a_rate_below_that_of_the_end_does_not_rise():
    groups = [{'params': [torch.nn.Parameter(torch.zeros(2))]}]
    plan = optimizer_plan(groups, 1e-7, 20, Schedule(min_lr=1e-6, warmup=0.1), False)
    optimizer, scheduler = plan['optimizer'], plan['lr_scheduler']['scheduler']
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    assert rates[2:] == pytest.approx([1e-7] * 18)


def test_fused_steps_are_those_of_the_plain_kernel():
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 8))
        groups = [{'params': [weight], 'still': 0.2}]
        plan = optimizer_plan(groups, 1e-2, 10, Schedule(0.0, 0.1), fused)
        rates = []
        for _ in range(4):
            weight.grad = torch.randn(8, 8)
            rates.append(plan['optimizer'].param_groups[0]['lr'])
            plan['optimizer'].step()
            plan['lr_scheduler']['scheduler'].step()
        assert rates[:2] == [0.0, 0.0]
        assert min(rates[2:]) > 0
        found.append(weight.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
