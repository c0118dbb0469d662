"""Losses: the references' numbers and gradients, naive loops, memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import IBOTPatchLoss, KoLeoLoss
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from torchgeo_explora.functional import (
    cross_entropy,
    dino_loss,
    ibot_loss,
    koleo,
    masked_mse,
    normalize_patches,
    patch_statistics,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def views(generator):
    """Logits of 3 local and 2 global crops of 4 images, 10 prototypes, and targets."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    local, global_ = normal(3, 4, 10), normal(2, 4, 10)
    target = (normal(2, 4, 10) * 3).softmax(-1)
    return local.requires_grad_(), global_.requires_grad_(), target


@pytest.fixture
def patches(generator):
    """Logits, targets and mask of 5 crops, the second of which has no mask."""
    mask = torch.rand(5, 12, generator=generator) < 0.4
    mask[1] = False
    shape = int(mask.sum()), 10
    student = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)
    return student.requires_grad_(), target, mask


def naive_cross_entropy(student, target, temperature):
    probability = (student / temperature).exp()
    probability = probability / probability.sum()
    return -(target * probability.log()).sum()


def naive_dino_loss(local, global_, target, temperature):
    images = local.shape[1]
    pairs = 2 + 2 * len(local)
    local_term = global_term = 0
    for image in range(images):
        for crop in (0, 1):
            goal = target[crop, image]
            for view in local:
                local_term += naive_cross_entropy(view[image], goal, temperature)
            other = global_[1 - crop, image]
            global_term += naive_cross_entropy(other, goal, temperature)
    return local_term / images / pairs, global_term / images / pairs


def test_cross_entropy_has_the_published_value():
    student = torch.tensor([[0.1, 0.2, 0.0]])
    target = torch.tensor([[0.5, 0.3, 0.2]])
    loss = ibot_loss(student, target, torch.tensor([[True]]), 0.1)
    assert_close(loss, torch.tensor(1.307606), atol=1e-6, rtol=0)


@pytest.mark.parametrize('temperature', [0.1, 0.5, 1.0])
def test_dino_loss_equals_a_loop_over_pairs(views, temperature):
    terms = dino_loss(*views, temperature)
    for term, expected in zip(terms, naive_dino_loss(*views, temperature), strict=True):
        assert_close(term, expected)


def test_dino_loss_and_gradient_equal_the_references(golden):
    arrays, config = golden('dino_losses')
    count, images = config['n_local'], config['B']
    local = torch.stack([arrays[f'in.dino.student_logits.{i}'] for i in range(count)])
    global_ = arrays['in.dino.student_global_logits'].view(2, images, -1)
    target = arrays['out.sk_dino.iters3'].view(2, images, -1)
    local.requires_grad_()
    global_.requires_grad_()
    pairs = 2 + 2 * count

    local_term, _ = dino_loss(local, global_, target, config['student_temp'])
    local_term.backward()
    assert_close(local_term * pairs, arrays['out.dino.local_loss'])
    for i, grad in enumerate(local.grad):
        expected = arrays[f'grad.dino.local.student_logits.{i}']
        assert_close(grad * pairs, expected)

    # The reference's number pairs row i with row i: its caller swaps the crops.
    swapped = target.flip(0)
    _, global_term = dino_loss(local, global_, swapped, config['student_temp'])
    global_term.backward()
    assert_close(global_term * pairs / 2, arrays['out.dino.global_loss'])
    expected = arrays['grad.dino.global.student_global_logits'].view_as(global_)
    assert_close(global_.grad * pairs / 2, expected)


def test_dino_loss_without_local_crops_counts_one_local_pair(views):
    _, global_, target = views
    local = global_.new_zeros(0, 4, 10).requires_grad_()
    local_term, global_term = dino_loss(local, global_, target)
    assert local_term == 0
    local_term.backward()
    with_one = dino_loss(global_[:1], global_, target)[1]
    assert_close(global_term * 3, with_one * 4)


def test_targets_of_global_crops_are_swapped_inside(views):
    local, _, target = views
    # Two students: one sees crop 0 as the teacher sees crop 1, one as it sees crop 0.
    crossed = target.flip(0).log() * 0.1
    same = target.log() * 0.1
    best = dino_loss(local, crossed, target)[1]
    assert best < dino_loss(local, same, target)[1]
    entropy = torch.special.entr(target).sum(-1).mean()
    assert_close(best, 2 * entropy / 8)


def test_dino_loss_does_not_depend_on_the_order_of_images_or_local_crops(views):
    local, global_, target = views
    images, crops = [2, 0, 3, 1], [1, 2, 0]
    shuffled = dino_loss(local[crops][:, images], global_[:, images], target[:, images])
    assert_close(shuffled, dino_loss(*views))


def test_gradcheck_of_dino_loss(views):
    assert torch.autograd.gradcheck(lambda *x: dino_loss(*x, views[2]), views[:2])


def test_dino_loss_refuses_shapes_that_do_not_belong_together(views):
    local, global_, target = views
    with pytest.raises(ValueError, match='global'):
        dino_loss(local, global_[:1], target[:1])
    with pytest.raises(ValueError, match='target'):
        dino_loss(local, global_, target[:, :3])
    with pytest.raises(ValueError, match='local'):
        dino_loss(local[:, :3], global_, target)


def test_only_the_student_gets_a_gradient(views):
    local, global_, target = views
    target.requires_grad_()
    sum(dino_loss(local, global_, target)).backward()
    assert target.grad is None
    assert global_.grad is not None


def test_without_a_gradient_none_is_taken(views, patches, monkeypatch):
    student, goal, mask = patches
    normal = torch.randn(10, 10, dtype=torch.float64, requires_grad=True)

    def run():
        terms = dino_loss(*views, 0.1, normal)
        return (*terms, ibot_loss(student, goal, mask, 0.1, normal))

    expected = run()
    monkeypatch.setattr(cross_entropy, '_add_product', None)
    with torch.no_grad():
        assert_close(run(), tuple(term.detach() for term in expected))
    with pytest.raises(TypeError):
        run()


def test_small_probabilities_survive_products_in_float16(generator):
    """The gradient of a scaled loss under float16 autocast, as a GradScaler has it."""
    count = 65_536
    prototypes = F.normalize(torch.rand(count, 8, generator=generator), dim=-1)
    rows = F.normalize(torch.randn(50, 8, generator=generator), dim=-1)
    target = torch.zeros(50, count)
    # What is wanted has no part in the vectors' gradient: the others' sum is left.
    target[:, 0] = 1
    prototypes[0] = 0
    inputs = rows.requires_grad_(), prototypes.requires_grad_()
    mask = torch.ones(1, 50, dtype=torch.bool)

    def gradient(kind):
        with torch.autocast('cpu', kind, enabled=kind != torch.float32):
            loss = ibot_loss(rows, target, mask, 0.1, prototypes)
        return torch.autograd.grad(2.0**16 * loss, inputs)

    for found, expected in zip(
        gradient(torch.float16), gradient(torch.float32), strict=True
    ):
        assert found.dtype == torch.float32
        scale = expected.abs().max().item()
        assert_close(found, expected, rtol=0, atol=1e-3 * scale)


def test_slices_change_neither_loss_nor_gradient(views, patches, monkeypatch):
    student, goal, mask = patches

    def run():
        terms = (*dino_loss(*views), ibot_loss(student, goal, mask))
        return terms, torch.autograd.grad(sum(terms), (*views[:2], student))

    whole = run()
    monkeypatch.setattr(cross_entropy, '_CPU_SLICE', 30)
    assert_close(run(), whole)


class Largest(TorchDispatchMode):
    """Keep the size in bytes of the largest memory that a tensor has."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else [found]:
            if isinstance(each, torch.Tensor):
                self.size = max(self.size, each.untyped_storage().nbytes())
        return found


def test_logits_of_all_rows_are_never_made(generator):
    rows, prototypes = 40, 2**18  # more than two slices of a CPU
    vectors = torch.randn(rows, 2, generator=generator).requires_grad_()
    weight = torch.randn(prototypes, 2, generator=generator).requires_grad_()
    target = torch.zeros(1, 1).expand(rows, prototypes)
    mask = torch.ones(1, rows, dtype=torch.bool)
    with Largest() as largest:
        ibot_loss(vectors, target, mask, prototypes=weight).backward()
    assert weight.grad.shape == weight.shape
    assert 2**22 < largest.size <= 2**24  # slices of 16 MB


@pytest.mark.parametrize('size', [30, 2**22], ids=['slices', 'whole'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_logits_made_by_the_slice_change_neither_loss_nor_gradient(
    views, patches, generator, monkeypatch, dtype, size
):
    def normal(*shape):
        tensor = torch.randn(*shape, generator=generator, dtype=dtype)
        return tensor.requires_grad_()

    target, (_, goal, mask) = views[2].to(dtype), patches
    local, global_, rows = normal(3, 4, 6), normal(2, 4, 6), normal(len(goal), 6)
    prototypes = normal(10, 6)
    inputs = local, global_, rows, prototypes
    goal = goal.to(dtype)

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, id):
        dino_loss(local, global_, target, 0.1, prototypes)
    # Nothing of the size of the logits: gradients, of which none is a target's.
    assert {tuple(x.shape) for x in kept} == {(3, 4, 6), (2, 4, 6), (10, 6)}

    monkeypatch.setattr(cross_entropy, '_CPU_SLICE', size)
    fused = (
        *dino_loss(local, global_, target, 0.1, prototypes),
        ibot_loss(rows, goal, mask, 0.1, prototypes),
    )
    plain = (
        *dino_loss(local @ prototypes.T, global_ @ prototypes.T, target, 0.1),
        ibot_loss(rows @ prototypes.T, goal, mask, 0.1),
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert_close(fused, plain, rtol=tolerance, atol=tolerance)
    # Each term has a weight of its own.
    for weights in ((1, 1, 1), (1, 2, 3)):
        found, expected = (
            torch.autograd.grad(
                sum(w * t for w, t in zip(weights, terms, strict=True)),
                inputs,
                retain_graph=True,
            )
            for terms in (fused, plain)
        )
        scale = max(gradient.abs().max().item() for gradient in expected)
        assert_close(found, expected, rtol=tolerance, atol=tolerance * max(scale, 1))


def test_logits_made_by_the_slice_have_the_type_of_autocast(views, generator):
    target = views[2].float()
    prototypes = torch.randn(10, 6, generator=generator).requires_grad_()
    local = torch.randn(3, 4, 6, generator=generator).requires_grad_()
    global_ = torch.randn(2, 4, 6, generator=generator)
    with torch.autocast('cpu', torch.bfloat16):
        fused = dino_loss(local, global_, target, 0.1, prototypes)
        products = (F.linear(x, prototypes) for x in (local, global_))
        plain = dino_loss(*products, target, 0.1)
    assert torch.equal(torch.stack(fused), torch.stack(plain))
    found, expected = (
        torch.autograd.grad(sum(terms), (local, prototypes)) for terms in (fused, plain)
    )
    assert found[1].dtype == torch.float32
    assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_prototypes_of_another_number_than_the_targets_are_refused(views):
    local, global_ = torch.zeros(3, 4, 6), torch.zeros(2, 4, 6)
    with pytest.raises(ValueError, match='must both'):
        dino_loss(local, global_, views[2].float(), 0.1, torch.zeros(9, 6))


@pytest.mark.parametrize('scale', [1, 100])
def test_half_precision_logits_are_compared_in_float32(views, scale):
    local, global_, target = (scale * x.detach() for x in views)
    target = target.float() / scale
    halves = [x.bfloat16().requires_grad_() for x in (local, global_)]
    wholes = [x.detach().float().requires_grad_() for x in halves]
    with torch.autocast('cpu', torch.bfloat16):
        terms = dino_loss(*halves, target)
    expected = dino_loss(*wholes, target)
    assert terms[0].dtype == torch.float32
    assert_close(terms, expected)
    for half, whole in zip(
        torch.autograd.grad(sum(terms), halves),
        torch.autograd.grad(sum(expected), wholes),
        strict=True,
    ):
        assert half.dtype == torch.bfloat16
        assert_close(half, whole.bfloat16())


def test_a_sure_student_loses_no_digits():
    # The loss is 1e-5 where the logits are 1e4: nothing may cancel.
    student = torch.tensor([[1000.0, 1000.0 - 1.1512925, -1000.0]])
    target = torch.tensor([[1.0, 0.0, 0.0]])
    loss = ibot_loss(student, target, torch.tensor([[True]]), 0.1)
    # log(1 + exp(-gap)), with the gap that float32 holds.
    gap = (student[0, 0] - student[0, 1]).double().item() / 0.1
    assert_close(loss.item(), math.log1p(math.exp(-gap)), rtol=0.02, atol=0)


def test_ibot_loss_and_gradient_equal_the_references(golden):
    arrays, config = golden('dino_losses')
    student = arrays['in.ibot.student_logits'].requires_grad_()
    target = arrays['out.sk_ibot.iters3']
    loss = ibot_loss(student, target, arrays['in.ibot.masks'], config['student_temp'])
    loss.backward()
    assert_close(loss, arrays['out.ibot.forward_masked'])
    assert_close(student.grad, arrays['grad.ibot.forward_masked.student_logits'])


def test_ibot_rows_are_those_of_the_mask(golden):
    arrays, config = golden('dino_losses')
    mask = arrays['in.ibot.masks']
    student = arrays['in.ibot_dense.student_logits'].requires_grad_()
    teacher = arrays['in.ibot_dense.teacher_logits'] / config['teacher_temp']
    target = teacher.softmax(-1)
    loss = ibot_loss(student[mask], target[mask], mask, config['student_temp'])
    loss.backward()
    assert_close(loss, arrays['out.ibot_dense.loss'])
    assert_close(student.grad, arrays['grad.ibot_dense.student_logits'])


def test_ibot_loss_equals_a_loop_over_crops(patches):
    student, target, mask = patches
    total, row = 0, 0
    for crop in mask:
        count = int(crop.sum())
        for _ in range(count):
            total += naive_cross_entropy(student[row], target[row], 0.1) / count
            row += 1
    assert_close(ibot_loss(student, target, mask), total / 5)


def test_ibot_loss_equals_lightlys_cross_entropy(patches):
    student, target, mask = (x.detach() for x in patches)
    student = student.float()
    oracle = IBOTPatchLoss(output_dim=10, teacher_temp=1.0, student_temp=0.1)
    # The softmax of a logarithm is the distribution itself; its centre starts at zero.
    expected = oracle(target.float().log(), student, mask.view(5, 3, 4))
    assert_close(ibot_loss(student, target.float(), mask), expected)


def test_ibot_loss_without_a_mask_is_a_zero_in_the_graph():
    student = torch.zeros(0, 10, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 10), torch.zeros(4, 9, dtype=torch.bool))
    assert loss == 0
    loss.backward()
    assert student.grad.shape == (0, 10)


def test_gradcheck_of_ibot_loss(patches):
    student, target, mask = patches
    assert torch.autograd.gradcheck(lambda x: ibot_loss(x, target, mask), [student])


def test_ibot_loss_refuses_rows_that_are_not_the_masks(patches):
    student, target, mask = patches
    with pytest.raises(ValueError, match='masked patches'):
        ibot_loss(student[1:], target[1:], mask)
    with pytest.raises(ValueError, match='masked patches'):
        ibot_loss(student, target[1:], mask)


def test_koleo_has_the_published_value():
    rows = [[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 0.6, 0.8]]
    loss = koleo(torch.tensor(rows))
    assert_close(loss, torch.tensor(0.458145), atol=1e-6, rtol=0)


def test_koleo_and_gradient_equal_the_references(golden):
    arrays, _ = golden('dino_losses')
    features = arrays['in.koleo.features'].requires_grad_()
    loss = koleo(features)
    loss.backward()
    assert_close(loss, arrays['out.koleo.loss'])
    assert_close(features.grad, arrays['grad.koleo.features'])


def test_koleo_of_parallel_features_is_large_and_finite(golden):
    arrays, _ = golden('dino_losses')
    features = arrays['in.koleo.features_with_duplicate'].requires_grad_()
    loss = koleo(features)
    loss.backward()
    # Rounding decides the two smallest distances.
    assert_close(loss, arrays['out.koleo.loss_with_duplicate'], rtol=0.2, atol=0)
    assert features.grad.isfinite().all()


def test_koleo_of_equal_features_is_that_of_the_two_epsilons():
    features = torch.ones(2, 9)
    # One on each of the 9 differences, one on the distance.
    expected = -math.log(3 * 1e-8 + 1e-8)
    assert_close(koleo(features), torch.tensor(expected))


def test_koleo_equals_lightlys(generator):
    features = torch.randn(16, 5, generator=generator)
    assert_close(koleo(features), KoLeoLoss()(features))


def test_koleo_ignores_length_and_order(generator):
    features = torch.randn(9, 5, generator=generator)
    length = torch.rand(9, 1, generator=generator) + 0.1
    order = torch.randperm(9, generator=generator)
    assert_close(koleo((length * features)[order]), koleo(features))


def test_koleo_moves_both_of_a_pair():
    # The third is the neighbour of none, and the pair is its neighbour in turn.
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.3]], requires_grad=True)
    pair = koleo(features[:2])
    (grad,) = torch.autograd.grad(pair, features)
    assert (grad[:2].norm(dim=1) > 0).all()
    assert (grad[2] == 0).all()


def test_gradcheck_of_koleo(generator):
    features = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(koleo, [features.requires_grad_()])


def test_koleo_is_float32_under_autocast(generator):
    features = torch.randn(8, 16, generator=generator).bfloat16()
    expected = koleo(features.float())
    with torch.autocast('cpu', torch.bfloat16):
        loss = koleo(features)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_koleo_refuses_a_single_image():
    with pytest.raises(ValueError, match='micro-batch of 2'):
        koleo(torch.zeros(1, 4))


def test_normalised_patches_use_the_unbiased_variance():
    patch = torch.tensor([0.0, 1.0, 2.0, 3.0])
    expected = torch.tensor([-1.161895, -0.387298, 0.387298, 1.161895])
    assert_close(normalize_patches(patch), expected, atol=1e-6, rtol=0)
    assert torch.equal(normalize_patches(torch.full((2, 4), 7.0)), torch.zeros(2, 4))


def test_normalised_patches_forget_scale_and_shift(generator):
    patches = torch.rand(2, 3, 48, generator=generator, dtype=torch.float64)
    result = normalize_patches(patches, eps=0)
    assert_close(normalize_patches(5 * patches - 2, eps=0), result)
    assert_close(result.var(-1), torch.ones(2, 3, dtype=torch.float64))


@pytest.fixture
def pixels(generator):
    prediction, target = torch.randn(2, 3, 5, 4, generator=generator).double()
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    return prediction.requires_grad_(), target, mask


def test_masked_mse_equals_a_loop_over_hidden_tokens(pixels):
    prediction, target, mask = pixels
    total = sum(
        (prediction[at] - target[at]).square().mean()
        for at in map(tuple, mask.nonzero().tolist())
    )
    assert_close(masked_mse(*pixels), total / 6)


def test_masked_mse_ignores_visible_tokens(pixels):
    prediction, target, mask = pixels
    (grad,) = torch.autograd.grad(masked_mse(*pixels), prediction)
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).all()
    other = torch.where(mask.unsqueeze(-1), target, 99)
    assert_close(masked_mse(prediction, other, mask), masked_mse(*pixels))


def test_masked_mse_ignores_unknown_pixels(pixels):
    prediction, target, mask = pixels
    target[0, 0, 1] = torch.nan
    target[2, 1] = torch.nan
    loss = masked_mse(prediction, target, mask)
    tokens = [(prediction[0, 0] - target[0, 0])[[0, 2, 3]].square().mean()]
    for at in ((0, 2), (0, 3), (1, 2), (2, 0)):
        tokens.append((prediction[at] - target[at]).square().mean())
    assert_close(loss, sum(tokens) / 5)
    (grad,) = torch.autograd.grad(loss, prediction)
    assert grad.isfinite().all()


def test_masked_mse_of_nothing_is_a_zero_in_the_graph(pixels):
    prediction, target, mask = pixels
    loss = masked_mse(prediction, target, torch.zeros_like(mask))
    loss.backward()
    assert loss == 0
    assert (prediction.grad == 0).all()


def test_gradcheck_of_masked_mse(pixels):
    prediction, target, mask = pixels
    assert torch.autograd.gradcheck(lambda x: masked_mse(x, target, mask), [prediction])


def test_masked_mse_is_float32_for_half_precision(pixels):
    prediction, target, mask = pixels
    half = prediction.detach().bfloat16()
    loss = masked_mse(half, target.float(), mask)
    assert loss.dtype == torch.float32
    assert_close(loss, masked_mse(half.float(), target.float(), mask))


def test_masked_mse_refuses_shapes_that_do_not_belong_together(pixels):
    prediction, target, mask = pixels
    with pytest.raises(ValueError, match='mask'):
        masked_mse(prediction, target, mask[:, :4])
    with pytest.raises(ValueError, match='prediction'):
        masked_mse(prediction[..., :3], target, mask)


def test_weights_of_a_crop_do_not_depend_on_how_much_it_hides():
    # One token hidden in crop 0, three in crop 1: both crops weigh the same.
    mask = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 1]]).bool()
    target = F.one_hot(torch.tensor([0, 1, 1, 1]), 2).float()
    student = torch.zeros(4, 2, requires_grad=True)
    ibot_loss(student, target, mask, 1.0).backward()
    assert_close(student.grad[0].abs().sum(), student.grad[1:].abs().sum())


def test_unknown_values_have_no_part_in_a_patchs_statistics(generator):
    patches = torch.rand(2, 3, 48, generator=generator, dtype=torch.float64)
    known = patches[0, 1, 5:].clone()
    patches[0, 1, :5] = torch.nan
    mean, std = patch_statistics(patches)
    assert_close(mean[0, 1, 0], known.mean())
    assert_close(std[0, 1, 0], (known.var() + 1e-6).sqrt())
    result = normalize_patches(patches)
    assert_close(result[0, 1, 5:], normalize_patches(known))
    assert result.isnan().sum() == 5


def test_a_patch_without_values_has_finite_statistics():
    mean, std = patch_statistics(torch.full((1, 4), torch.nan))
    assert_close(mean, torch.zeros(1, 1))
    assert_close(std, torch.full((1, 1), 1e-3))
    # A single value is its own mean.
    assert normalize_patches(torch.tensor([torch.nan, 3.0]))[1] == 0
