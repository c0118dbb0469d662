"""The DINOv2 objective: one whole step against the reference, and its laws."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.augment import Views
from torchgeo_explora.functional import (
    block_masks,
    cosine_schedule,
    linear_warmup,
    sinkhorn_knopp_,
)
from torchgeo_explora.models import ViT
from torchgeo_explora.models.checkpoints import from_dinov2
from torchgeo_explora.objectives import DINOv2

PREFIX = 'out.shared_sk.'


def _strip(tensors, prefix):
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


def _load_head(head, state):
    """Fill a head by the order of its layers, from input to prototypes."""
    names = [f'mlp.{i}.{kind}' for i in (0, 2, 4) for kind in ('weight', 'bias')]
    names += ['last_layer.weight_g', 'last_layer.weight_v']
    with torch.no_grad():
        for parameter, name in zip(head.parameters(), names, strict=True):
            parameter.copy_(state[name])
    return dict(zip(names, head.parameters(), strict=True))


@pytest.fixture
def step(golden):
    """The reference's student, teacher, crops and masks, in our objective."""
    tensors, config = golden('dinov2_ssl_step')
    architecture, head = config['backbone'], config['overrides']['dino']
    student = ViT(
        'vit_small_patch14_dinov2',
        image_size=architecture['img_size'],
        embed_dim=architecture['embed_dim'],
        depth=architecture['depth'],
        num_heads=architecture['num_heads'],
        mlp_ratio=architecture['mlp_ratio'],
    )
    state, rest = from_dinov2(_strip(tensors, 'sd.student.backbone.'))
    student.load_state_dict(state)
    objective = DINOv2(
        student,
        prototypes=head['head_n_prototypes'],
        hidden_dim=head['head_hidden_dim'],
        bottleneck_dim=head['head_bottleneck_dim'],
        koleo_weight=head['koleo_loss_weight'],
        mask_token=rest['mask_token'],
        clip=config['overrides']['optim']['clip_grad'],
    )
    # The reference trains everything, the mask token too.
    objective.mask_token.requires_grad_(True)
    student.requires_grad_(True)
    heads = _load_head(objective.head, _strip(tensors, 'sd.student.dino_head.'))
    objective.teacher.load_state_dict(
        from_dinov2(_strip(tensors, 'sd.teacher.backbone.'))[0]
    )
    teachers = _load_head(
        objective.teacher_head, _strip(tensors, 'sd.teacher.dino_head.')
    )
    images = config['B'][0]
    crops = tensors['in.r0.global_crops'], tensors['in.r0.local_crops']
    views = [crop.unflatten(0, (-1, images)) for crop in crops]
    terms = objective.terms(
        *views, tensors['in.r0.masks'].bool(), config['teacher_temp']
    )
    return tensors, config, objective, terms, heads, teachers


def _named(backbone, mask_token, head):
    """Map the reference's names to tensors, or to gradients, of q, k and v together."""
    named = {f'dino_head.{name}': [p] for name, p in head.items()}
    named['backbone.mask_token'] = [mask_token]
    for name, parameter in backbone.named_parameters():
        for part in ('q', 'k', 'v'):
            name = name.replace(f'attn.{part}.', 'attn.qkv.')
        named.setdefault(f'backbone.{name}', []).append(parameter)
    return named


def test_every_term_equals_the_reference(step):
    tensors, _, _, terms, _, _ = step
    assert_close(terms['dino_local'], tensors[PREFIX + 'dino_local_crops_loss'])
    assert_close(terms['dino_global'], tensors[PREFIX + 'dino_global_crops_loss'])
    # The reference reports half of what it adds to the total.
    assert_close(terms['koleo'], 2 * tensors[PREFIX + 'koleo_loss'])
    assert_close(terms['ibot'], 2 * tensors[PREFIX + 'ibot_loss'])
    assert_close(sum(terms.values()), tensors[PREFIX + 'total'])


def test_gradients_equal_the_reference(step):
    tensors, _, objective, terms, heads, _ = step
    sum(terms.values()).backward()
    named = _named(objective.student, objective.mask_token, heads)
    checked = 0
    for key, expected in _strip(tensors, 'grad.shared_sk.').items():
        found = torch.cat([p.grad for p in named[key]])
        scale = expected.abs().max().item()
        assert_close(
            found.view_as(expected), expected, rtol=1e-4, atol=1e-4 * scale, msg=key
        )
        checked += 1
    assert checked > 8
    for key, expected in _strip(tensors, PREFIX + 'gradnorm.').items():
        norm = torch.cat([p.grad.flatten() for p in named[key]]).norm()
        assert_close(norm, expected, rtol=1e-4, atol=1e-7, msg=key)


def test_clip_step_and_teacher_equal_the_reference(step):
    tensors, config, objective, terms, heads, teachers = step
    sum(terms.values()).backward()
    named = _named(objective.student, objective.mask_token, heads)
    # In the reference the mask token is one of the backbone's parameters.
    objective.student.register_parameter('mask_token', objective.mask_token)
    norms = objective.before_step(0.0)
    del objective.student.mask_token
    expected = tensors[PREFIX + 'clip_total_norm.backbone']
    assert_close(norms['backbone'], expected, rtol=1e-4, atol=0)
    expected = tensors[PREFIX + 'clip_total_norm.dino_head']
    assert_close(norms['head'], expected, rtol=1e-4, atol=0)

    rates = config['step']
    groups = []
    for key, (lr, decay, last) in _strip(tensors, PREFIX + 'group.').items():
        rate = rates['last_layer_lr'] if last else rates['lr']
        groups.append(
            {
                'params': named[key],
                'lr': rate * float(lr),
                'weight_decay': rates['wd'] * float(decay),
            }
        )
    torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8).step()
    objective.momentum = (rates['momentum'], rates['momentum'])
    objective.after_step(0.5)

    moved = _named(objective.teacher, objective.mask_token, teachers)
    for folder, found in (('student_after.', named), ('teacher_after.', moved)):
        for key, expected in _strip(tensors, PREFIX + folder).items():
            if key.endswith('mask_token') and found is moved:
                continue  # ours is frozen by default, and has no average
            value = torch.cat(list(found[key])).view_as(expected)
            if key.endswith('qkv.bias'):
                # A key's bias has no gradient: Adam steps on rounding noise there.
                third = len(expected) // 3
                keep = [*range(third), *range(2 * third, 3 * third)]
                value, expected = value[keep], expected[keep]
            assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=folder + key)


def _objective(backbone, **kwargs):
    adapt(backbone, Adaptation(adapter=lora(4)))
    return DINOv2(
        backbone, prototypes=32, hidden_dim=16, bottleneck_dim=8, steps=10, **kwargs
    )


def _inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    global_ = torch.randn(2, 4, 3, 32, 32, generator=generator)
    local = torch.randn(3, 4, 3, 16, 16, generator=generator)
    mask = torch.rand(8, 16, generator=generator) < 0.3
    mask[4:] = False
    return global_, local, mask


def test_teacher_equals_student_at_the_start(tiny_backbone):
    objective = _objective(tiny_backbone)
    image = _inputs()[0][0]
    objective.eval()
    for found, expected in zip(
        objective.teacher(image), objective.student(image), strict=True
    ):
        assert torch.equal(found, expected)
    cls = torch.randn(3, 24)
    assert torch.equal(objective.teacher_head(cls), objective.head(cls))


def test_base_is_bit_identical_after_ten_steps(tiny_backbone):
    objective = _objective(tiny_backbone)
    frozen = {
        name: p.detach().clone()
        for name, p in objective.named_parameters()
        if not p.requires_grad and not name.startswith('teacher')
    }
    shared = {id(p) for p in objective.student.parameters() if not p.requires_grad}
    first = copy.deepcopy(objective.teacher.state_dict())
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(10):
        optimizer.zero_grad()
        sum(objective.terms(*_inputs(step), 0.05).values()).backward()
        objective.before_step(step / 10)
        optimizer.step()
        objective.after_step(step / 10)
    after = dict(objective.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert shared == {id(p) for p in objective.teacher.parameters()} & shared
    moved = [
        k for k, v in objective.teacher.state_dict().items() if (v != first[k]).any()
    ]
    assert moved
    assert all(not p.requires_grad for p in objective.teacher.parameters())


def test_exactly_delta_and_head_get_gradients(tiny_backbone):
    objective = _objective(tiny_backbone)
    sum(objective.terms(*_inputs(), 0.05).values()).backward()
    got = {name for name, p in objective.named_parameters() if p.grad is not None}
    trains = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert got == trains
    assert all(name.startswith(('student.', 'head.')) for name in got)


def test_teacher_stays_in_eval_mode(tiny_backbone):
    objective = _objective(tiny_backbone).train()
    assert objective.student.training
    assert not objective.teacher.training
    assert not objective.teacher_head.training


def test_no_local_views_and_no_mask_leave_a_loss(tiny_backbone):
    objective = _objective(tiny_backbone)
    global_, local, mask = _inputs()
    terms = objective.terms(global_, local[:0], torch.zeros_like(mask), 0.05)
    assert set(terms) == {'dino_global', 'ibot', 'koleo'}
    assert terms['ibot'].item() == 0
    sum(terms.values()).backward()
    assert objective.head.prototypes.direction.grad is not None


def test_koleo_off_allows_a_single_image(tiny_backbone):
    objective = _objective(tiny_backbone, koleo_weight=0.0)
    global_, local, mask = _inputs()
    terms = objective.terms(global_[:, :1], local[:, :1], mask[[0, 4]], 0.05)
    assert 'koleo' not in terms


def test_koleo_with_one_image_says_what_to_do(tiny_backbone):
    objective = _objective(tiny_backbone)
    global_, local, mask = _inputs()
    with pytest.raises(ValueError, match='batch'):
        objective.terms(global_[:, :1], local[:, :1], mask[[0, 4]], 0.05)


def test_terms_have_their_weights(tiny_backbone):
    objective = _objective(tiny_backbone)
    whole = objective.terms(*_inputs(), 0.05)
    objective.ibot_weight, objective.koleo_weight = 0.25, 0.3
    weighed = objective.terms(*_inputs(), 0.05)
    factors = {'ibot': 0.25, 'koleo': 3.0}  # of 1.0 and 0.1
    assert whole['ibot'] > 0
    for name, term in whole.items():
        assert_close(weighed[name], factors.get(name, 1.0) * term)


@pytest.mark.parametrize('clip', [None, 0.01])
def test_backbone_and_head_are_clipped_each_by_its_own_norm(tiny_backbone, clip):
    objective = _objective(tiny_backbone, **({} if clip is None else {'clip': clip}))
    for module, size in ((objective.student, 5.0), (objective.head, 0.5)):
        trained = [p for p in module.parameters() if p.requires_grad]
        values = sum(p.numel() for p in trained)
        for parameter in trained:
            parameter.grad = torch.full_like(parameter, size / math.sqrt(values))
    norms = objective.before_step(0.0)
    assert_close(norms, {'backbone': torch.tensor(5.0), 'head': torch.tensor(0.5)})
    for module, before in ((objective.student, 5.0), (objective.head, 0.5)):
        gradients = [
            p.grad.flatten() for p in module.parameters() if p.grad is not None
        ]
        limit = min(before, 3.0 if clip is None else clip)
        assert_close(torch.cat(gradients).norm(), torch.tensor(limit))


def test_features_that_collapse_have_no_spread(tiny_backbone):
    objective = _objective(tiny_backbone)
    global_, local, mask = _inputs()
    objective.terms(global_, local, mask, 0.05)
    assert 0.01 < objective.diagnostics['feature_std'] < 1 / math.sqrt(24)
    same = global_[:1, :1].expand_as(global_)
    objective.terms(same, local, mask, 0.05)
    assert_close(
        objective.diagnostics['feature_std'], torch.tensor(0.0), atol=1e-6, rtol=0
    )


def test_targets_are_taken_in_float32_under_autocast(tiny_backbone, monkeypatch):
    objective = _objective(tiny_backbone)
    kinds = []

    def spy(logits, temperature):
        kinds.append(logits.dtype)
        return sinkhorn_knopp_(logits, temperature)

    monkeypatch.setattr('torchgeo_explora.objectives.dinov2.sinkhorn_knopp_', spy)
    with torch.autocast('cpu', torch.bfloat16):
        objective.terms(*_inputs(), 0.05)
    assert kinds == [torch.float32, torch.float32]


@pytest.mark.parametrize('steps', [10, 49, 6250])
def test_schedules_are_those_of_whole_steps(tiny_backbone, steps):
    """Step i of n is told as i / n, of which n times may be just below i."""
    objective = _objective(tiny_backbone)
    objective.steps = steps
    for step in range(steps):
        momentum = cosine_schedule(step, steps, 0.994, 1.0)
        assert objective.momentum_at(step / steps) == momentum
        temperature = linear_warmup(step, int(0.15 * steps), 0.04, 0.07)
        assert objective.temperature_at(step / steps) == temperature


def test_schedules_follow_progress(tiny_backbone):
    objective = _objective(tiny_backbone)
    objective.steps = 100
    assert objective.momentum_at(0.0) == pytest.approx(0.994)
    assert objective.momentum_at(0.5) == pytest.approx(0.997)
    assert objective.momentum_at(1.0) == pytest.approx(1.0)
    assert objective.temperature_at(0.0) == pytest.approx(0.04)
    # 15 values of warm-up, the last one included.
    assert objective.temperature_at(0.14) == pytest.approx(0.07)
    assert objective.temperature_at(0.07) == pytest.approx(0.055)
    assert objective.temperature_at(1.0) == pytest.approx(0.07)


def test_masks_are_drawn_on_the_grid_of_the_views(tiny_backbone, monkeypatch):
    """Rows before columns, where views are not square."""
    drawn = []

    def spy(crops, grid, *ranges):
        drawn.append((crops, grid))
        return block_masks(crops, grid, *ranges)

    monkeypatch.setattr('torchgeo_explora.objectives.dinov2.block_masks', spy)
    views = Views(torch.rand(2, 3, 3, 16, 32), torch.rand(0, 3, 3, 16, 16))
    objective = _objective(tiny_backbone, augment=lambda image: views)
    objective({'image': torch.rand(3, 3, 32, 32)}, 0.0)
    assert drawn == [(6, (2, 4))]


def test_forward_draws_masks_from_the_global_generator(tiny_backbone):
    class Crops(torch.nn.Module):
        def forward(self, image):
            small = image[..., :16, :16]
            return Views(torch.stack([image, image]), small[None])

    objective = _objective(tiny_backbone, augment=Crops())
    batch = {'image': torch.rand(4, 3, 32, 32, generator=torch.Generator())}
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(sum(objective(batch, 0.0).values()).item())
    assert losses[0] == losses[1] != losses[2]
    assert math.isfinite(losses[0])
    assert {'feature_std', 'target_entropy', 'momentum', 'teacher_temperature'} <= set(
        objective.diagnostics
    )


HEADS = {'prototypes': 20, 'hidden_dim': 12, 'bottleneck_dim': 6, 'head_layers': 2}


def test_a_head_of_their_own_for_patches_has_its_own_sizes(tiny_backbone):
    """DINOv3's separate head: iBOT's gradient never reaches the other head."""
    objective = _objective(tiny_backbone, ibot_head=HEADS)
    terms = objective.terms(*_inputs(), 0.05)
    assert objective.ibot_head.prototypes.direction.shape == (20, 6)
    assert objective.head.prototypes.direction.shape == (32, 8)
    terms['ibot'].backward(retain_graph=True)
    assert all(p.grad is None for p in objective.head.parameters())
    assert all(p.grad is not None for p in objective.ibot_head.parameters())
    objective.zero_grad()
    (terms['dino_global'] + terms['dino_local'] + terms['koleo']).backward()
    assert all(p.grad is None for p in objective.ibot_head.parameters())
    assert all(p.grad is not None for p in objective.head.parameters())


def test_equal_heads_of_their_own_give_the_losses_of_a_shared_one(tiny_backbone):
    sizes = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8}
    objective = _objective(tiny_backbone, ibot_head=sizes)
    for own, shared in (
        (objective.ibot_head, objective.head),
        (objective.teacher_ibot_head, objective.teacher_head),
    ):
        own.load_state_dict(shared.state_dict())
    apart = objective.terms(*_inputs(), 0.05)
    objective.ibot_head = objective.teacher_ibot_head = None
    for name, value in objective.terms(*_inputs(), 0.05).items():
        assert_close(apart[name], value, rtol=1e-5, atol=1e-5)


def test_the_head_for_patches_is_clipped_and_has_a_teacher(tiny_backbone):
    objective = _objective(tiny_backbone, ibot_head=HEADS, momentum=(0.5, 0.5)).train()
    assert not objective.teacher_ibot_head.training
    sum(objective.terms(*_inputs(), 0.05).values()).backward()
    assert objective.before_step(0.0).keys() == {'backbone', 'head', 'ibot_head'}
    before = objective.teacher_ibot_head.mlp[0].bias.clone()
    with torch.no_grad():
        objective.ibot_head.mlp[0].bias += 1
    objective.after_step(0.0)
    assert_close(objective.teacher_ibot_head.mlp[0].bias, before + 0.5)


def test_options_are_off_by_default(tiny_backbone):
    """Neither a term nor a tensor more than without them."""
    objective = _objective(tiny_backbone)
    terms = objective.terms(*_inputs(), 0.05)
    assert {*terms} == {'dino_global', 'dino_local', 'ibot', 'koleo'}
    parts = {name.partition('.')[0] for name in objective.state_dict()}
    assert parts == {'student', 'head', 'teacher', 'teacher_head', 'mask_token'}
