"""The laws of masked autoencoding."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, count, lora
from torchgeo_explora.functional import (
    normalize_patches,
    patchify,
    random_mask,
    sincos_2d,
)
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT
from torchgeo_explora.objectives import MAE

SIZES = {
    'decoder_dim': 24,
    'decoder_depth': 1,
    'decoder_heads': 2,
    'decoder_channel_dim': 8,
    'decoder_time_dim': 12,
}
BANDS = ('B02', 'B03', 'B04', 'B05', 'B08')
GROUPS = (('B02', 'B03', 'B04', 'B08'), ('B05',))
DATES = torch.tensor([[[13, 6, 7], [14, 0, 0]], [[2, 11, 23], [8, 9, 1]]])


def build(kind, image_size=32, **options):
    """Return a small objective of one kind, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {'image_size': image_size, 'patch_size': 8, 'depth': 2, 'num_heads': 2}
        if kind == 'groups':
            student = GroupChannelViT(
                BANDS, GROUPS, embed_dim=24, channel_embed_dim=8, **sizes
            )
        elif kind == 'series':
            student = TemporalViT(embed_dim=24, time_embed_dim=12, **sizes)
        else:
            student = ViT('vit_tiny_patch16_224', embed_dim=24, **sizes)
        return MAE(student, **SIZES | options)


def draw(kind, images=2, seed=0):
    """Return images of one kind, their metadata, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = {'groups': (5,), 'series': (2, 3), 'plain': (3,)}[kind]
    image = torch.randn(images, *shape, 32, 32, generator=generator)
    metadata = {'timestamps': DATES} if kind == 'series' else {}
    tokens = 16 if kind == 'plain' else 32
    mask = random_mask(torch.rand(images, tokens, generator=generator), 0.75)
    return image, metadata, mask


KINDS = pytest.mark.parametrize('kind', ['plain', 'groups', 'series'])


def test_loss_equals_a_loop_over_hidden_patches():
    objective = build('plain')
    image, _, mask = draw('plain')
    prediction, target = objective.reconstruct(image, mask)
    rows = patchify(image, 8)
    errors = []
    for b, n in mask.nonzero().tolist():
        row = rows[b, n]
        expected = (row - row.mean()) / (row.var() + 1e-6).sqrt()
        assert_close(target[b, n], expected)
        errors.append((prediction[b, n] - expected).square().mean())
    assert_close(objective.loss(image, mask), sum(errors) / len(errors))


def test_groups_weigh_as_one_token_whatever_their_bands():
    """Method of SatMAE: mean over a group's values, then over (group, place)."""
    objective = build('groups')
    image, _, mask = draw('groups')
    prediction, target = objective.reconstruct(image, mask)
    assert prediction.shape == target.shape == (2, 5, 16, 64)
    rows = patchify(image, 8, 'chw')  # (B, h * w, C * p * p)
    expected = normalize_patches(rows).unflatten(-1, (5, 64)).transpose(1, 2)
    assert_close(target, expected)
    errors = []
    for b, g, n in mask.unflatten(1, (2, 16)).nonzero().tolist():
        channels = [BANDS.index(name) for name in GROUPS[g]]
        difference = prediction[b, channels, n] - expected[b, channels, n]
        errors.append(difference.square().mean())
    assert_close(objective.loss(image, mask), sum(errors) / len(errors))


@KINDS
def test_only_visible_tokens_are_encoded(kind):
    objective = build(kind)
    image, metadata, mask = draw(kind)
    seen = []
    objective.student.blocks[0].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[1])
    )
    objective.loss(image, mask, **metadata)
    # And the class token.
    assert seen == [1 + mask.shape[1] // 4]


@KINDS
def test_hidden_pixels_do_not_reach_the_prediction(kind):
    objective = build(kind)
    image, metadata, mask = draw(kind)
    hidden, _ = objective.paint(image, mask, **metadata)
    assert_close(hidden.float().mean(), torch.tensor(0.75), atol=0.1, rtol=0)
    other = torch.where(hidden, torch.randn_like(image), image)
    first, _ = objective.reconstruct(image, mask, **metadata)
    second, _ = objective.reconstruct(other, mask, **metadata)
    assert torch.equal(first, second)


@KINDS
def test_a_perfect_prediction_paints_the_image(kind, monkeypatch):
    for norm_pix in (True, False):
        objective = build(kind, norm_pix=norm_pix)
        image, metadata, mask = draw(kind)
        target = objective._target(image)
        monkeypatch.setattr(objective.decoder, 'predict', lambda x, t=target: t)
        assert objective.loss(image, mask, **metadata) == 0
        _, painted = objective.paint(image, mask, **metadata)
        assert_close(painted, image)


@KINDS
def test_missing_pixels_count_for_nothing(kind):
    objective = build(kind)
    image, metadata, mask = draw(kind)
    hole = torch.zeros_like(image, dtype=torch.bool)
    hole[0, ..., :9, 3:20] = True
    image = image.masked_fill(hole, torch.nan)
    loss = objective.loss(image, mask, **metadata)
    prediction, target = objective.reconstruct(image, mask, **metadata)
    assert loss.isfinite()
    assert prediction.isfinite().all()
    # The encoder sees the mean of normalised pixels there.
    filled, _ = objective.reconstruct(image.nan_to_num(0), mask, **metadata)
    assert torch.equal(prediction, filled)
    # The pixels that are known keep their place and are normalised by themselves.
    _, painted = objective.paint(image, mask, **metadata)
    assert painted.isfinite().all()
    assert target.isnan().sum() == hole.sum()
    known = ~target.isnan()
    assert target[known].abs().max() < 10
    loss.backward()
    assert all(p.grad.isfinite().all() for p in _trained(objective))


@KINDS
def test_a_patch_without_data_is_never_counted(kind):
    objective = build(kind)
    image, metadata, mask = draw(kind)
    grid = objective.student.embed(image, **metadata).grid
    place = mask.unflatten(1, grid)[0, 0].nonzero()[0] * 8
    top, left = place.tolist()
    image[0, ..., top : top + 8, left : left + 8] = torch.nan
    loss = objective.loss(image, mask, **metadata)
    prediction, target = objective.reconstruct(image, mask, **metadata)
    rows = (prediction - target).square().mean(-1)
    if kind == 'groups':  # (B, C, h * w) -> (B, G * h * w)
        groups = objective.student.group_indices
        rows = torch.cat([rows[:, list(group)].mean(1) for group in groups], dim=1)
    counted = mask & ~rows.isnan()
    assert counted.sum() < mask.sum()
    assert_close(loss, rows[counted].mean())


def test_an_image_without_data_leaves_a_zero_in_the_graph():
    objective = build('plain')
    image, _, mask = draw('plain')
    loss = objective.loss(torch.full_like(image, torch.nan), mask)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in _trained(objective))


def _trained(objective):
    return [p for p in objective.parameters() if p.requires_grad]


@KINDS
def test_every_parameter_that_trains_gets_a_gradient(kind):
    """DDP waits for those that do not."""
    objective = build(kind)
    adapt(objective.student, Adaptation(adapter=lora(2)))
    image, metadata, mask = draw(kind)
    objective.loss(image, mask, **metadata).backward()
    assert all(p.grad is not None for p in _trained(objective))
    assert not objective.decoder.pos_embed.requires_grad


@KINDS
def test_parts_of_a_batch_have_its_loss_and_gradient_on_average(kind):
    """With as many hidden tokens in each: so accumulation changes nothing."""
    objective = build(kind)
    image, metadata, mask = draw(kind)
    objective.loss(image, mask, **metadata).backward()
    whole = [p.grad.clone() for p in _trained(objective)]
    objective.zero_grad()
    for one in range(2):
        part = {name: value[one : one + 1] for name, value in metadata.items()}
        loss = objective.loss(image[one : one + 1], mask[one : one + 1], **part)
        (loss / 2).backward()
    for parameter, expected in zip(_trained(objective), whole, strict=True):
        assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


@KINDS
def test_images_need_not_be_square(kind):
    objective = build(kind, image_size=(32, 16))
    assert objective.decoder.grid == (4, 2)
    code = objective.decoder.code_dim
    table = objective.decoder.pos_embed[0, 1:]
    assert_close(table, sincos_2d((4, 2), SIZES['decoder_dim'] - code))
    image, metadata, _ = draw(kind)
    image = image[..., :16]
    grid = objective.student.embed(image, **metadata).grid
    mask = objective.draw_mask(len(image), grid)
    hidden, painted = objective.paint(image, mask, **metadata)
    assert hidden.shape == painted.shape == image.shape


@KINDS
@pytest.mark.parametrize('ratio', [0.75, 0.5, 0.9])
def test_masks_hide_their_share(kind, ratio):
    image, metadata, _ = draw(kind)
    for consistent in (False, True):
        objective = build(kind, mask_ratio=ratio, consistent_mask=consistent)
        grid = objective.student.embed(image, **metadata).grid
        torch.manual_seed(0)
        mask = objective.draw_mask(64, grid)
        layers = grid[0] if consistent else 1
        tokens = grid[0] * 16
        visible = layers * int(tokens / layers * (1 - ratio))
        assert ((~mask).sum(1) == visible).all()
        planes = mask.unflatten(1, (grid[0], 16))
        same = (planes == planes[:, :1]).all()
        assert same == (consistent or grid[0] == 1)


def test_a_seed_means_the_same_mask_and_loss():
    objective = build('plain')
    image, _, _ = draw('plain')
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(objective({'image': image}, 0.0)['mae'].item())
    assert losses[0] == losses[1] != losses[2]


def test_forward_takes_what_the_backbone_knows_from_the_batch():
    objective = build('series')
    image, metadata, _ = draw('series')
    # What data modules add must not be in the way.
    batch = {
        'image': image,
        'index': torch.arange(2),
        'mask': torch.ones(2),
        **metadata,
    }
    assert objective({**batch, 'path': ['a', 'b']}, 0.5)['mae'].isfinite()
    with pytest.raises(ValueError, match=r'\*timestamps\*'):
        objective({'image': image}, 0.5)


def test_loss_is_float32_and_near_under_autocast():
    objective = build('plain')
    image, _, mask = draw('plain')
    expected = objective.loss(image, mask)
    with torch.autocast('cpu', torch.bfloat16):
        loss = objective.loss(image, mask)
    assert loss.dtype == torch.float32
    assert_close(loss, expected, rtol=0.02, atol=0)


def test_the_student_is_kept_and_nothing_else_moves():
    objective = build('plain')
    image, _, mask = draw('plain')
    objective.loss(image, mask).backward()
    assert objective.pretrained is objective.student
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    grads = [p.grad.clone() for p in _trained(objective)]
    norms = objective.before_step(0.5)
    objective.after_step(0.5)
    assert norms.keys() == {'backbone', 'decoder'}
    squares = [
        p.grad.square().sum()
        for p in objective.decoder.parameters()
        if p.grad is not None
    ]
    assert_close(norms['decoder'], torch.stack(squares).sum().sqrt())
    assert all(map(torch.equal, grads, (p.grad for p in _trained(objective))))
    assert all(torch.equal(before[k], v) for k, v in objective.state_dict().items())


@pytest.mark.parametrize('ratio', [0, 1, -0.1, 75])
def test_ratios_that_hide_nothing_or_all_are_refused(ratio):
    with pytest.raises(ValueError, match='above 0 and below 1'):
        build('plain', mask_ratio=ratio)


def test_a_ratio_must_leave_a_token():
    with pytest.raises(ValueError, match='hides all of 16'):
        build('plain', mask_ratio=0.95).draw_mask(2, (1, 4, 4))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda mask: mask[:, :4], r'expected bool \(B, N\)'),
        (lambda mask: mask.float(), 'float32'),
        (lambda mask: mask.scatter(1, torch.tensor([[0], [1]]), True), 'equally many'),
    ],
)
def test_masks_that_do_not_fit_are_refused(change, message):
    image, _, _ = draw('plain')
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3:] = mask[1, 1:14] = True
    with pytest.raises(ValueError, match=message):
        build('plain').loss(image, change(mask))


@pytest.mark.parametrize(
    ('kind', 'change', 'message'),
    [
        ('plain', {'decoder_heads': 5}, 'not a multiple of 5 heads'),
        ('plain', {'decoder_dim': 26}, 'multiple of 4'),
        ('groups', {'decoder_channel_dim': 24}, 'leaves 0'),
        ('groups', {'decoder_channel_dim': 7}, 'is odd'),
        ('series', {'decoder_time_dim': 8}, 'multiple of 6'),
    ],
)
def test_widths_of_the_decoder_must_go_together(kind, change, message):
    with pytest.raises(ValueError, match=message):
        build(kind, **change)


@pytest.mark.parametrize(
    ('unfreeze', 'rank', 'trained'),
    [
        ([-1], 32, 15_707_136),
        ([-1], 64, 18_721_792),
        ([0, -1], 32, 28_168_192),
        ([0, -1], 64, 31_051_776),
    ],
)
def test_parameters_of_the_papers_deltas(unfreeze, rank, trained):
    with torch.device('meta'):
        student = ViT('vit_large_patch16_224.mae')
    assert sum(p.numel() for p in student.parameters()) == 303_301_632
    adapt(student, Adaptation(unfreeze, cls_token=False, adapter=lora(rank)))
    assert count(student) == (trained, 303_301_632)
