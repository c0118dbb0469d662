"""Gram anchoring against a plain reference in float64."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, delta_state_dict, lora
from torchgeo_explora.augment import AnchoredViews
from torchgeo_explora.objectives import DINOv2
from torchgeo_explora.objectives.terms.gram import gram_term

SMALL = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8, 'steps': 10}


def _reference(student, anchor):
    """Mean squared error of all pairs of patches, one pair at a time, in float64."""
    errors = []
    for own, kept in zip(student.double(), anchor.double(), strict=True):
        for i in range(len(own)):
            for j in range(len(own)):
                first = F.cosine_similarity(own[i], own[j], dim=0)
                second = F.cosine_similarity(kept[i], kept[j], dim=0)
                errors.append((first - second) ** 2)
    return torch.stack(errors).mean()


@pytest.mark.parametrize('scale', [1, 2])
def test_term_equals_a_plain_float64_reference(tiny_backbone, scale):
    torch.manual_seed(0)
    anchor = tiny_backbone.eval().requires_grad_(False)
    patch = torch.randn(3, 16, 24, requires_grad=True)
    view = torch.randn(3, 3, 32 * scale, 32 * scale)
    found = gram_term(patch, (1, 4, 4), anchor, view)
    kept = anchor(view).patch.double()
    maps = kept.mT.unflatten(2, (4 * scale, 4 * scale))
    maps = F.interpolate(maps, size=(4, 4), mode='bicubic')
    assert_close(
        found.double(), _reference(patch, maps.flatten(2).mT), rtol=1e-5, atol=0
    )
    found.backward()
    assert patch.grad.abs().max() > 0


def test_groups_of_patches_are_resized_one_by_one(tiny_backbone):
    """With spectral groups, patches of one group must not mix with another's."""

    class Groups(torch.nn.Module):
        def embed(self, view):
            tokens = tiny_backbone.embed(view)
            content = torch.cat([tokens.content, 2 * tokens.content], dim=1)
            position = torch.cat([tokens.position, tokens.position], dim=1)
            return tokens._replace(
                content=content, position=position, grid=(2, *tokens.grid[1:])
            )

        def encode(self, content, position):
            return tiny_backbone.encode(content, position)

    anchor, view = Groups(), torch.randn(1, 3, 64, 64)
    tokens = anchor.embed(view)
    kept = anchor.encode(tokens.content, tokens.position).patch
    parts = [
        F.interpolate(part.mT.unflatten(2, (8, 8)), size=(4, 4), mode='bicubic')
        for part in kept.chunk(2, dim=1)
    ]
    expected = torch.cat([part.flatten(2).mT for part in parts], dim=1)
    assert gram_term(expected, (2, 4, 4), anchor, view) < 1e-10


def _objective(backbone, **options):
    adapt(backbone, Adaptation(adapter=lora(4)))
    return DINOv2(backbone, **(SMALL | {'gram_weight': (0.0, 2.0)} | options))


def _inputs(seed=0, masked=0.3):
    generator = torch.Generator().manual_seed(seed)
    global_ = torch.randn(2, 4, 3, 32, 32, generator=generator)
    local = torch.randn(3, 4, 3, 16, 16, generator=generator)
    return global_, local, torch.rand(8, 16, generator=generator) < masked


def test_weight_rises_by_a_cosine_from_0_to_2(tiny_backbone):
    objective = _objective(tiny_backbone)
    found = [objective.gram_weight_at(p) for p in (0.0, 0.2, 0.5, 1.0)]
    cosine = 1 - torch.cos(torch.tensor(0.2 * torch.pi)).item()
    assert found == pytest.approx([0.0, cosine, 1.0, 2.0])


def test_term_is_that_of_the_masked_global_pass_over_all_patches(tiny_backbone):
    objective = _objective(tiny_backbone).train()
    global_, local, mask = _inputs()
    larger = torch.randn(2, 4, 3, 64, 64)
    terms = objective.terms(global_, local, mask, 0.05, anchor=larger, progress=0.5)
    crops = global_.flatten(0, 1)
    tokens = objective.student.embed(crops)
    content = torch.where(mask[..., None], objective.mask_token, tokens.content)
    patch = objective.student.encode(content, tokens.position).patch
    kept = objective.anchor(larger.flatten(0, 1)).patch.mT.unflatten(2, (8, 8))
    kept = F.interpolate(kept, size=(4, 4), mode='bicubic').flatten(2).mT
    assert_close(terms['gram'].double(), _reference(patch, kept), rtol=1e-4, atol=1e-8)


def test_other_terms_do_not_depend_on_anchoring(tiny_backbone):
    objective = _objective(tiny_backbone)
    with_gram = objective.terms(*_inputs(), 0.05)
    objective.anchor = None
    without = objective.terms(*_inputs(), 0.05)
    assert with_gram.keys() - without.keys() == {'gram'}
    for name, value in without.items():
        assert_close(with_gram[name], value, rtol=1e-5, atol=1e-5)


def test_term_is_0_at_the_start_and_where_nothing_is_masked(tiny_backbone):
    objective = _objective(tiny_backbone)
    terms = objective.terms(*_inputs(masked=0), 0.05, progress=1.0)
    assert terms['gram'] < 1e-10


def test_views_of_own_augmentations_reach_the_anchor(tiny_backbone):
    seen = []

    def augment(image):
        small = image[..., :16, :16]
        return AnchoredViews(torch.stack([image, image]), small[None], larger)

    larger = torch.randn(2, 4, 3, 64, 64)
    objective = _objective(tiny_backbone, augment=augment)
    objective.anchor.register_forward_pre_hook(lambda *_: None)
    embed = objective.anchor.embed
    objective.anchor.embed = lambda view: seen.append(view) or embed(view)
    objective({'image': torch.rand(4, 3, 32, 32)}, 0.5)
    assert torch.equal(seen[0], larger.flatten(0, 1))


def test_anchor_is_the_base_after_50_steps_of_the_objective(tiny_backbone):
    """Exactly: 0.0 apart, although block, norms, class token and LoRA have moved."""
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        base = tiny_backbone.eval()(image)
    objective = _objective(tiny_backbone).train()
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(50):
        optimizer.zero_grad()
        terms = objective.terms(*_inputs(step), 0.05, progress=step / 50)
        sum(terms.values()).backward()
        objective.before_step(step / 50)
        optimizer.step()
        objective.after_step(step / 50)
    with torch.no_grad():
        anchor, student = objective.anchor(image), objective.student.eval()(image)
    assert (anchor.cls - base.cls).abs().max() == 0
    assert (anchor.patch - base.patch).abs().max() == 0
    assert (student.patch - base.patch).abs().max() > 0.1
    assert not objective.anchor.training
    assert not any('anchor' in name for name in delta_state_dict(objective))


def test_anchoring_holds_the_similarities(tiny_backbone):
    """The same twenty steps end nearer to the base where the term is on."""
    state = {k: v.clone() for k, v in tiny_backbone.state_dict().items()}
    ends = []
    for weight in (0.0, 1000.0):
        torch.manual_seed(0)
        backbone = type(tiny_backbone)(**tiny_backbone.arguments)
        backbone.load_state_dict(state)
        objective = _objective(backbone)
        objective.gram_weight = (weight, weight)
        trained = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        for step in range(20):
            optimizer.zero_grad()
            sum(objective.terms(*_inputs(step), 0.05).values()).backward()
            optimizer.step()
        objective.gram_weight = (1.0, 1.0)
        ends.append(objective.terms(*_inputs(99, masked=0), 0.05)['gram'].item())
    assert ends[1] < 0.7 * ends[0]
