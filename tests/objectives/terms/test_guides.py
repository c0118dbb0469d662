"""Guides: losses, missing values, moving averages, and what reaches the backbone."""

import math

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, delta_state_dict, lora
from torchgeo_explora.objectives import DINOv2, DINOv2Options, Guide
from torchgeo_explora.objectives.terms.guides import Guides

SMALL = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8, 'steps': 10}
#: A progress at which the strength is 1 in float32.
FULL = 1e3


def _guides(*guides, width=6):
    torch.manual_seed(0)
    return Guides([Guide(**guide) for guide in guides], width)


def _filled(guides, codes, cls):
    """Let prototypical guides see a batch, so that they have averages."""
    guides(cls, [codes] * len(guides.guides), 0.0)
    guides.after_step()
    return guides


def test_prototypical_loss_equals_a_plain_float64_reference():
    torch.manual_seed(0)
    cls, codes = torch.randn(8, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 5])
    guides = _filled(_guides({'name': 'region', 'temperature': 0.2}), codes, cls)
    view = torch.randn(8, 6)
    found = guides(view, [codes], 1.0)['guide_region']
    unit = torch.nn.functional.normalize(cls.double(), dim=1)
    centroids = {c: unit[codes == c].mean(0) for c in codes.unique().tolist()}
    losses = []
    for row, code in zip(view.double(), codes.tolist(), strict=True):
        scores = {
            c: math.exp(torch.cosine_similarity(row, centre, dim=0).item() / 0.2)
            for c, centre in centroids.items()
        }
        losses.append(-math.log(scores[code] / sum(scores.values())))
    assert found.item() == pytest.approx(sum(losses) / 8, rel=1e-5)


def test_classification_and_regression_equal_plain_references():
    guides = _guides(
        {'name': 'country', 'kind': 'classification', 'values': 4},
        {'name': 'gsd', 'kind': 'regression', 'mean': 2.0, 'std': 0.5},
    )
    cls = torch.randn(5, 6)
    country = torch.tensor([0, 3, 1, 2, 2])
    gsd = torch.rand(5)
    found = guides(cls, [country, gsd], 1.0)
    logits = guides.heads['guide_country'].mlp(cls).double()
    expected = -(logits.softmax(1)[torch.arange(5), country]).log().mean()
    assert_close(found['guide_country'].double(), expected, rtol=1e-5, atol=0)
    values = guides.heads['guide_gsd'].mlp(cls).double().squeeze(1)
    expected = (values - (gsd.double() - 2) / 0.5).square().mean()
    assert_close(found['guide_gsd'].double(), expected, rtol=1e-5, atol=0)


KINDS = [
    {'name': 'x', 'kind': 'prototypical', 'values': 4},
    {'name': 'x', 'kind': 'classification', 'values': 4},
    {'name': 'x', 'kind': 'regression'},
]


@pytest.mark.parametrize('guide', KINDS, ids=lambda guide: guide['kind'])
@pytest.mark.parametrize('missing', [-1, math.nan])
def test_missing_values_are_left_out(guide, missing):
    """NaN for any kind; -1 for whole numbers, while a regression may aim at it."""
    if guide['kind'] == 'regression':
        missing = math.nan
    cls, whole = torch.randn(6, 6), torch.tensor([0.0, 1, 2, 3, 0, 1])
    guides = _filled(_guides(guide), whole, torch.randn(6, 6))
    target = whole.clone()
    target[[1, 4]] = missing
    keep = [0, 2, 3, 5]
    rows = cls.clone().requires_grad_()
    found = guides(rows, [target], FULL)['guide_x']
    assert_close(found, guides(cls[keep], [target[keep]], FULL)['guide_x'])
    found.backward()
    assert not rows.grad[[1, 4]].any()
    assert rows.grad[keep].any(1).all()


@pytest.mark.parametrize('guide', KINDS, ids=lambda guide: guide['kind'])
def test_a_batch_without_any_value_gives_a_loss_of_0(guide):
    guides = _filled(_guides(guide), torch.arange(4), torch.randn(4, 6))
    cls = torch.randn(4, 6, requires_grad=True)
    found = guides(cls, [torch.full((4,), math.nan)], FULL)['guide_x']
    found.backward()
    assert found == 0
    assert not cls.grad.any()


def test_a_value_without_an_average_does_not_count_yet():
    guides = _filled(_guides(KINDS[0]), torch.tensor([0, 1]), torch.randn(2, 6))
    cls = torch.randn(3, 6)
    found = guides(cls, [torch.tensor([0, 1, 2])], FULL)['guide_x']
    assert_close(found, guides(cls[:2], [torch.tensor([0, 1])], FULL)['guide_x'])
    assert found.isfinite()


@pytest.mark.parametrize('guide', KINDS, ids=lambda guide: guide['kind'])
def test_the_gradient_of_an_adversary_is_reversed_and_a_tenth(guide):
    """Its head trains as before: only what reaches the backbone changes sign."""
    gradients = {}
    for adversarial in (False, True):
        guides = _guides({**guide, 'weight': 0.5, 'adversarial': adversarial})
        codes = torch.tensor([0, 1, 2, 3])
        torch.manual_seed(1)
        _filled(guides, codes, torch.randn(4, 6))
        cls = torch.randn(4, 6, requires_grad=True)
        guides(cls, [codes], FULL)['guide_x'].backward()
        heads = [p.grad for p in guides.parameters()]
        gradients[adversarial] = cls.grad, heads
    assert gradients[False][0].abs().max() > 1e-4
    assert_close(gradients[True][0], -gradients[False][0] / 10)
    assert_close(gradients[True][1], gradients[False][1])


def test_strength_rises_by_the_sigmoid_of_dann():
    guides = _guides(KINDS[2])
    cls, target = torch.randn(4, 6), torch.rand(4)
    found = []
    for progress in (0.0, 0.1, 0.5, FULL):
        rows = cls.clone().requires_grad_()
        guides(rows, [target], progress)['guide_x'].backward()
        found.append(rows.grad.norm())
    shares = [(value / found[-1]).item() for value in found]
    expected = [2 / (1 + math.exp(-10 * p)) - 1 for p in (0, 0.1, 0.5)]
    assert shares[:3] == pytest.approx(expected, abs=1e-6)


def test_guides_have_gradients_of_one_norm_on_the_class_token():
    """A loss that is 100 times as steep has no more say than another."""
    cls, target = torch.randn(4, 6), torch.rand(4)
    plain = {'kind': 'regression', 'weight': 1.0}
    parts = []
    for names in (('a',), ('b',), ('a', 'b')):
        torch.manual_seed(0)
        guides = Guides([Guide(name, **plain) for name in names], 6)
        for name, head in guides.heads.items():
            torch.manual_seed(1 if name == 'guide_a' else 2)
            for parameter in head.parameters():
                torch.nn.init.normal_(parameter)
                parameter.data *= 10 if name == 'guide_b' else 1
        rows = cls.clone().requires_grad_()
        sum(guides(rows, [target] * len(names), FULL).values()).backward()
        parts.append(rows.grad)
    first, second, both = parts
    assert second.norm() > 10 * first.norm()
    norm = (first.norm() + second.norm()) / 2
    expected = norm * (first / first.norm() + second / second.norm())
    assert_close(both, expected, rtol=1e-4, atol=1e-5 * norm.item())


def test_averages_start_as_plain_means_and_then_move_with_the_momentum():
    guides = _guides({**KINDS[0], 'momentum': 0.75})
    head = guides.heads['guide_x']
    batches = [torch.randn(3, 6) for _ in range(6)]
    expected = None
    for step, cls in enumerate(batches):
        guides(cls, [torch.tensor([2, 2, -1])], 0.0)
        guides.after_step()
        mean = torch.nn.functional.normalize(cls[:2], dim=1).mean(0)
        rate = max(1 / (step + 1), 0.25)
        expected = mean if expected is None else expected.lerp(mean, rate)
        assert_close(head.centroids[2], expected)
    assert head.steps.tolist() == [0, 0, 6, 0]
    assert not head.centroids[[0, 1, 3]].any()


def test_micro_batches_move_the_averages_as_one_batch_does():
    cls, codes = torch.randn(8, 6), torch.tensor([0, 1, 1, 3, 0, 0, 1, -1])
    states = []
    for size in (8, 4, 2):
        guides = _guides(KINDS[0])
        for part, code in zip(cls.split(size), codes.split(size), strict=True):
            guides(part, [code], 0.0)
        guides.after_step()
        states.append(guides.heads['guide_x'].centroids)
    assert_close(states[1], states[0])
    assert_close(states[2], states[0])


def test_evaluation_moves_no_average():
    guides = _guides(KINDS[0]).eval()
    guides(torch.randn(4, 6), [torch.arange(4)], 0.0)
    guides.after_step()
    assert not guides.heads['guide_x'].steps.any()


def test_crops_of_an_image_share_its_value():
    guides = _guides(KINDS[2])
    cls, target = torch.randn(6, 6), torch.rand(3)
    found = guides(cls, [target], 1.0)['guide_x']
    assert_close(found, guides(cls, [target.repeat(2)], 1.0)['guide_x'])


# In the objective ---------------------------------------------------------------


def _objective(backbone, *guides, **options):
    adapt(backbone, Adaptation(adapter=lora(4)))
    augment = options.pop('augment', None)
    return DINOv2(backbone, augment, guides=guides, **(SMALL | options))


def _inputs():
    generator = torch.Generator().manual_seed(0)
    global_ = torch.randn(2, 4, 3, 32, 32, generator=generator)
    local = torch.randn(3, 4, 3, 16, 16, generator=generator)
    return global_, local, torch.rand(8, 16, generator=generator) < 0.3


REGION = {'name': 'region', 'kind': 'classification', 'values': 3}


def test_guides_train_with_the_objective_and_are_clipped_on_their_own(tiny_backbone):
    objective = _objective(tiny_backbone, REGION, KINDS[0])
    targets = [torch.tensor([0, 1, 2, 0]), torch.tensor([3, 1, -1, 0])]
    terms = objective.terms(*_inputs(), 0.05, guides=targets, progress=0.5)
    assert {'guide_region', 'guide_x'} < terms.keys()
    sum(terms.values()).backward()
    assert objective.before_step(0.5).keys() == {'backbone', 'head', 'guides'}
    objective.after_step(0.5)
    assert objective.guides.heads['guide_x'].steps.tolist() == [1, 1, 0, 1]
    assert all(p.grad is not None for p in objective.guides.parameters())


def test_averages_are_in_the_checkpoint_and_not_in_the_delta(tiny_backbone):
    objective = _objective(tiny_backbone, KINDS[0])
    kept = delta_state_dict(objective)
    assert {'guides.heads.guide_x.centroids', 'guides.heads.guide_x.steps'} < {*kept}
    assert not any('guide' in name for name in delta_state_dict(objective.teacher))


def test_a_missing_key_is_an_error_that_lists_the_keys_there(tiny_backbone):
    objective = _objective(tiny_backbone, REGION, augment=lambda image: image)
    batch = {'image': torch.rand(2, 3, 32, 32), 'label': torch.zeros(2), 'path': ['']}
    with pytest.raises(ValueError, match=r"'region' finds no such key.*label, path"):
        objective(batch, 0.0)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (['a', 'b'], 'has a list: number its values from 0'),
        (torch.zeros(2, 3), r'has a tensor \(2, 3\)'),
        (torch.tensor([1.0, 0.3]), r'such as 0\.3: .*\*kind\* regression'),
        (torch.tensor([0, 7]), r'value 7, expected .* 0 to 2: .* \*values\* 8 or more'),
    ],
)
def test_values_that_are_no_codes_are_named(tiny_backbone, value, message):
    objective = _objective(tiny_backbone, REGION)
    batch = {'image': torch.rand(2, 3, 32, 32), 'region': value}
    with pytest.raises(ValueError, match=message):
        objective.guides(torch.randn(4, 24), objective.guides.targets(batch), 0.0)


@pytest.mark.parametrize(
    ('guide', 'message'),
    [
        ({'kind': 'contrastive'}, r"\*kind\* of the guide 'x' is 'contrastive'"),
        ({'name': 'a.b'}, r'without dots'),
        ({'weight': 0.0}, r'\*weight\* is 0'),
        ({'momentum': 2.0}, r'\*momentum\*'),
    ],
)
def test_bad_guides_are_refused(guide, message):
    with pytest.raises(ValueError, match=message):
        Guide(**({'name': 'x'} | guide))


def test_two_guides_of_one_key_are_refused():
    with pytest.raises(ValueError, match=r'\*guides\* has x twice'):
        _guides(KINDS[0], KINDS[2])


def test_options_take_guides_as_plain_values():
    options = DINOv2Options(guides=[{'name': 'year', 'adversarial': True}])
    assert options.guides == (Guide('year', adversarial=True),)
    assert options.guides[0].factor == pytest.approx(-0.003)
