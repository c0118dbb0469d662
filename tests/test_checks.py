"""Checks of numbers, and the options that they guard."""

import pytest

from torchgeo_explora.augment import MultiCropOptions
from torchgeo_explora.checks import require_positive, require_range, require_share
from torchgeo_explora.objectives import DINOv2Options, MAEOptions
from torchgeo_explora.tasks.run.optimizer import Schedule

NAN = float('nan')


@pytest.mark.parametrize('value', [-0.1, 1.1, 3000, NAN])
def test_a_share_is_between_0_and_1(value):
    require_share('x', 0)
    require_share('x', 1)
    with pytest.raises(ValueError, match=r'\*x\* is a share'):
        require_share('x', value)
    with pytest.raises(ValueError, match=r'from 0 to below 1, not 1'):
        require_share('x', 1, below_one=True)


@pytest.mark.parametrize('value', [-1, NAN, float('inf')])
def test_a_positive_number_is_finite(value):
    require_positive('x', 1e-9)
    require_positive('x', 0, or_zero=True)
    with pytest.raises(ValueError, match=r'\*x\* is .*above 0'):
        require_positive('x', value)
    with pytest.raises(ValueError, match=r'\*x\* is 0: give a number above 0'):
        require_positive('x', 0)


@pytest.mark.parametrize('value', [(0.5, 0.1), (-0.1, 1), (0, 1.1), (0.1,), (NAN, 1)])
def test_a_range_ascends(value):
    require_range('x', (0.1, 0.1))
    with pytest.raises(ValueError, match=r'\*x\* is .* smaller one first'):
        require_range('x', value)


@pytest.mark.parametrize(
    ('kind', 'change'),
    [
        # The paper's counts in place of shares.
        (DINOv2Options, {'freeze_prototypes': 3000}),
        (DINOv2Options, {'temperature_warmup': 30}),
        (DINOv2Options, {'momentum': (1.0, 0.994)}),
        (DINOv2Options, {'momentum': (0.9, 1.2)}),
        (DINOv2Options, {'teacher_temperature': (0.0, 0.07)}),
        (DINOv2Options, {'temperature': 0.0}),
        (DINOv2Options, {'ibot_weight': -1.0}),
        (DINOv2Options, {'koleo_weight': NAN}),
        (DINOv2Options, {'mask_probability': 1.5}),
        (DINOv2Options, {'mask_ratio': (0.5, 0.1)}),
        (DINOv2Options, {'clip': 0.0}),
        (DINOv2Options, {'prototypes': 0}),
        (MAEOptions, {'mask_ratio': 75.0}),
        (MAEOptions, {'decoder_depth': 0}),
        (MAEOptions, {'decoder_rank': -1}),
        (Schedule, {'warmup': 1.0}),
        (Schedule, {'min_lr': -1e-6}),
        (Schedule, {'betas': (0.9, 1.0)}),
        (Schedule, {'weight_decay': -0.1}),
        (MultiCropOptions, {'local_views': -1}),
        (MultiCropOptions, {'global_scale': (1.0, 0.32)}),
        (MultiCropOptions, {'local_scale': (0.0, 0.32)}),
        (MultiCropOptions, {'strength': -1.0}),
    ],
)
def test_an_option_out_of_range_is_named(kind, change):
    kind()
    with pytest.raises(ValueError, match=rf'\*{next(iter(change))}\*'):
        kind(**change)
