"""SIGReg as the term that spreads class tokens, in place of KoLeo."""

import math

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.objectives import DINOv2, DINOv2Options
from torchgeo_explora.objectives.terms.spread import sigreg_term

SMALL = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8, 'steps': 10}


def _objective(backbone, **options):
    adapt(backbone, Adaptation(adapter=lora(4)))
    return DINOv2(backbone, **(SMALL | {'spread': 'sigreg'} | options))


def _inputs(images=4):
    generator = torch.Generator().manual_seed(0)
    global_ = torch.randn(2, images, 3, 32, 32, generator=generator)
    local = torch.randn(3, images, 3, 16, 16, generator=generator)
    return global_, local, torch.rand(2 * images, 16, generator=generator) < 0.3


def _reference(features, directions):
    """The integral by sums over images, directions and knots, in float64."""
    total = 0.0
    step = 10 / 16
    for direction in directions.double().T:
        values = (features.double() @ direction).tolist()
        points = []
        for index in range(17):
            t = -5 + index * step
            normal = math.exp(-(t**2) / 2)
            real = sum(math.cos(t * v) for v in values) / len(values) - normal
            imaginary = sum(math.sin(t * v) for v in values) / len(values)
            points.append((real**2 + imaginary**2) * normal)
        total += step * (sum(points) - (points[0] + points[-1]) / 2)
    return total / directions.shape[1]


def test_term_is_sigreg_of_each_crop_by_a_plain_float64_reference():
    torch.manual_seed(0)
    projected = torch.randn(10, 8)
    torch.manual_seed(1)
    found = sigreg_term(projected, 30)
    torch.manual_seed(1)
    drawn = torch.nn.functional.normalize(torch.randn(8, 30), dim=0)
    expected = sum(_reference(crop, drawn) for crop in projected.chunk(2))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_objective_takes_what_comes_before_the_unit_vectors(tiny_backbone):
    """Of the head of the class tokens, with weight 0.05 and 1,024 directions."""
    objective = _objective(tiny_backbone).eval()
    global_, local, mask = _inputs()
    torch.manual_seed(1)
    terms = objective.terms(global_, local, mask, 0.05)
    crops = global_.flatten(0, 1)
    tokens = objective.student.embed(crops)
    content = torch.where(mask[..., None], objective.mask_token, tokens.content)
    cls = objective.student.encode(content, tokens.position).cls
    torch.manual_seed(1)
    assert_close(terms['sigreg'], 0.05 * sigreg_term(objective.head.mlp(cls), 1024))
    assert 'koleo' not in terms


def test_one_image_is_enough(tiny_backbone):
    objective = _objective(tiny_backbone)
    terms = objective.terms(*_inputs(1), 0.05)
    sum(terms.values()).backward()
    assert terms['sigreg'].isfinite()
    assert objective.head.mlp[0].weight.grad.isfinite().all()


def test_directions_are_drawn_anew_from_the_generator_of_the_step(tiny_backbone):
    objective = _objective(tiny_backbone, sigreg_directions=4)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(objective.terms(*_inputs(), 0.05)['sigreg'].item())
    assert found[0] == found[1] != found[2]


def test_term_spreads_features_that_have_collapsed():
    torch.manual_seed(0)
    features = (0.1 * torch.randn(64, 4)).requires_grad_()
    optimizer = torch.optim.Adam([features], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        sigreg_term(features, 32).backward()
        optimizer.step()
    assert features.std() > 0.7


def test_weight_0_leaves_it_out_and_other_names_are_refused(tiny_backbone):
    objective = _objective(tiny_backbone, sigreg_weight=0.0)
    assert 'sigreg' not in objective.terms(*_inputs(), 0.05)
    with pytest.raises(ValueError, match=r"\*spread\* is 'vicreg'"):
        DINOv2Options(spread='vicreg')
