"""Schedules against DINOv2's tables."""

import pytest

from torchgeo_explora.functional import cosine_schedule, linear_warmup

NAMES = ('lr', 'momentum', 'teacher_temp')


def test_warm_up_includes_its_end_value():
    values = [cosine_schedule(step, 10, 1.0, 0.1, warmup=4) for step in range(10)]
    expected = [0, 1 / 3, 2 / 3, 1, 1, 0.939711, 0.775, 0.55, 0.325, 0.160289]
    assert values == pytest.approx(expected, abs=1e-6)


def test_momentum_is_half_way_in_the_middle():
    assert cosine_schedule(0, 200_000, 0.994, 1.0) == pytest.approx(0.994)
    assert cosine_schedule(100_000, 200_000, 0.994, 1.0) == pytest.approx(0.997)


@pytest.mark.parametrize('step', [10, 11, 1000])
def test_the_end_is_reached_with_the_last_step(step):
    assert cosine_schedule(step, 10, 1.0, 0.1) == 0.1


def test_no_warm_up_is_no_warm_up():
    assert cosine_schedule(0, 10, 1.0, 0.1) == 1.0
    assert linear_warmup(0, 0, 0.04, 0.07) == 0.07


def test_a_warm_up_of_one_step_starts_low():
    assert linear_warmup(0, 1, 0.04, 0.07) == 0.04
    assert linear_warmup(1, 1, 0.04, 0.07) == 0.07


@pytest.mark.parametrize('name', ['lr', 'wd', 'tt'])
def test_schedules_equal_the_references(name, golden):
    arrays, config = golden('dinov2_schedules')
    c = config['cosine'][name]
    total = c['total_iters']
    values = [
        cosine_schedule(
            step,
            total,
            c['base_value'],
            c['final_value'],
            c.get('warmup_iters', 0),
            c.get('start_warmup_value', 0),
        )
        for step in range(total + 1)
    ]
    expected = [*arrays[f'out.cosine.{name}'], arrays[f'out.cosine.{name}.after_end']]
    assert values == pytest.approx([float(x) for x in expected], rel=1e-9, abs=1e-12)


def test_a_training_run_follows_the_references_tables(golden):
    arrays, config = golden('dinov2_schedules')
    run = config['train_like']['a']
    length = run['train']['OFFICIAL_EPOCH_LENGTH']
    total = run['optim']['epochs'] * length
    warmup = run['optim']['warmup_epochs'] * length
    temperature = run['teacher']['warmup_teacher_temp_epochs'] * length
    lr, least = run['optim']['lr'], run['optim']['min_lr']
    for step in range(total + 1):
        expected = {name: float(arrays[f'out.train.a.{name}'][step]) for name in NAMES}
        assert {
            'lr': cosine_schedule(step, total, lr, least, warmup),
            'momentum': cosine_schedule(step, total, 0.992, 1.0),
            'teacher_temp': linear_warmup(step, temperature, 0.04, 0.07),
        } == pytest.approx(expected, rel=1e-9, abs=1e-12)
