"""AdaLoRA's ranks."""

import pytest
import torch
from peft import AdaLoraConfig
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt
from torchgeo_explora.adapt.ranks import RankSchedule


def config(**arguments):
    defaults = {'init_r': 4, 'target_r': 1, 'tinit': 2, 'tfinal': 2, 'total_step': 100}
    return AdaLoraConfig(**{**defaults, 'target_modules': ['q', 'v'], **arguments})


def values(backbone):
    return torch.cat([p for n, p in backbone.named_parameters() if 'lora_E' in n])


def train(backbone, schedule, first, last):
    """Return how many singular values are left after each step."""
    rates = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(rates, 0.1)
    left = []
    for step in range(first, last):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = backbone(torch.randn(2, 3, 32, 32)).cls.square().mean()
        (loss + schedule.penalty()).backward()
        optimizer.step()
        schedule.step(step + 1)
        left.append(int((values(backbone) != 0).sum()))
    return left


@pytest.fixture
def adapted(tiny_backbone):
    torch.manual_seed(0)
    return adapt(tiny_backbone, Adaptation((), False, False, config()))


def test_ranks_come_down_to_the_budget_and_stay(adapted):
    # 3 blocks, q and v: 24 values at first, 6 at the end.
    left = train(adapted, RankSchedule(adapted, config(), 10), 0, 10)
    assert left[0] == left[1] == 24
    assert left == sorted(left, reverse=True)
    assert left[-3:] == [6, 6, 6]


def test_ranks_reach_the_budget_where_none_would_move_otherwise(adapted):
    """Ranks move every third step, and the last one to move them is the eighth."""
    left = train(adapted, RankSchedule(adapted, config(deltaT=3), 10), 0, 10)
    assert left[-4] > 6
    assert left[-3:] == [6, 6, 6]


def test_a_resumed_run_moves_the_same_ranks(adapted):
    whole = RankSchedule(adapted, config(), 10)
    train(adapted, whole, 0, 5)
    saved = {k: v.clone() for k, v in adapted.state_dict().items()}
    state = whole.state_dict()
    state = {
        k: dict(v) if k != 'pattern' and v is not None else v for k, v in state.items()
    }
    first = train(adapted, whole, 5, 10)
    end = values(adapted)
    adapted.load_state_dict(saved)
    again = RankSchedule(adapted, config(), 10)
    again.load_state_dict(state)
    assert train(adapted, again, 5, 10) == first
    assert_close(values(adapted), end)


def test_penalty_is_the_distance_from_orthogonal_directions(adapted):
    schedule = RankSchedule(adapted, config(orth_reg_weight=0.3), 10)
    distances = [
        torch.linalg.norm(p @ p.T - torch.eye(4))
        if 'lora_A' in name
        else torch.linalg.norm(p.T @ p - torch.eye(4))
        for name, p in adapted.named_parameters()
        if 'lora_A' in name or 'lora_B' in name
    ]
    assert_close(schedule.penalty(), 0.3 * sum(distances) / 12)


def test_runs_that_are_too_short_and_ranks_that_cannot_fall_are_refused(adapted):
    with pytest.raises(ValueError, match='and the run has 4: lower tinit'):
        RankSchedule(adapted, config(), 4)
    with pytest.raises(ValueError, match='give a smaller target_r'):
        RankSchedule(adapted, config(target_r=4), 10)
