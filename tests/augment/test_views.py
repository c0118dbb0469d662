from math import inf, nan

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from torchgeo_explora.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MultiCrop,
    MultiCropOptions,
    Preprocess,
    SingleCrop,
    crops,
)
from torchgeo_explora.augment.views import Normalize


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def undo(view):
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return view * std + mean


@pytest.mark.parametrize('channels', [1, 3, 4, 13])
@pytest.mark.parametrize('image_size', [(64, 64), (20, 50)])
def test_views_have_the_shapes_asked_for(channels, image_size):
    augment = MultiCrop(32, 16, 3, mean=[0.5] * channels, std=[0.25] * channels)
    views = augment(torch.rand(2, channels, *image_size))
    assert views.global_.shape == (2, 2, channels, 32, 32)
    assert views.local.shape == (3, 2, channels, 16, 16)
    for view in views:
        assert view.dtype == torch.float32
        assert view.abs().max() < 2.001
        assert view.std() > 0.1


def test_defaults_are_dinov2s():
    views = MultiCrop()(torch.rand(1, 3, 64, 64))
    assert views.global_.shape == (2, 1, 3, 224, 224)
    assert views.local.shape == (8, 1, 3, 98, 98)


@pytest.mark.parametrize(
    ('image_size', 'patch_size', 'local_size'),
    [(224, 14, 98), (224, 16, 96), (96, 8, 40), (32, 16, 16), (16, 16, 16)],
)
def test_local_size_is_the_multiple_of_the_patch_nearest_to_98_of_224(
    image_size, patch_size, local_size
):
    views = MultiCropOptions().build(image_size, patch_size, [0.5], [0.25])
    assert (views.global_size, views.local_size) == (image_size, local_size)


def test_options_build_the_views_they_describe():
    options = MultiCropOptions(24, 3, (0.5, 1.0), (0.1, 0.4), 0.5)
    views = options.build(32, 8, [0.5], [0.25])
    assert (views.local_size, views.local_views, views.strength) == (24, 3, 0.5)
    assert (views.global_scale, views.local_scale) == ((0.5, 1.0), (0.1, 0.4))
    torch.manual_seed(1)
    drawn = views(torch.full((1, 3, 40, 40), 0.5))
    torch.manual_seed(1)
    expected = MultiCrop(
        32, 24, 3, (0.5, 1.0), (0.1, 0.4), [0.5], [0.25], strength=0.5
    )(torch.full((1, 3, 40, 40), 0.5))
    assert torch.equal(drawn.global_, expected.global_)
    assert torch.equal(drawn.local, expected.local)


def test_a_local_size_that_is_not_a_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match=r'\*local_size\* 20 .* patch size 8: use 16'):
        MultiCropOptions(local_size=20).build(32, 8, [0.5], [0.25])


def test_there_may_be_no_local_views():
    views = MultiCrop(32, 16, local_views=0)(torch.rand(2, 3, 32, 32))
    assert views.local.shape == (0, 2, 3, 16, 16)


def test_views_are_normalised_after_all_else():
    image = torch.rand(4, 3, 32, 32)
    for view in MultiCrop(32, 16, 4)(image):
        unit = undo(view)
        assert unit.min() >= -1e-6
        assert unit.max() <= 1 + 1e-6


def test_without_photometric_changes_a_constant_image_stays():
    image = torch.tensor(IMAGENET_MEAN)[:, None, None].expand(2, 3, 40, 40)
    for view in MultiCrop(32, 16, 4, strength=0.0)(image):
        assert_close(view, torch.zeros_like(view), atol=1e-5, rtol=0)


def test_one_seed_gives_the_same_views_twice():
    augment = MultiCrop(32, 16, 4)
    image = torch.rand(3, 3, 40, 40)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(image))
    first, again, other = results
    assert torch.equal(first.global_, again.global_)
    assert torch.equal(first.local, again.local)
    assert not torch.equal(first.global_, other.global_)


def test_every_view_draws_for_itself():
    image = torch.rand(1, 3, 40, 40).expand(3, -1, -1, -1)
    views = MultiCrop(32, 32, 4)(image)
    every = torch.cat([views.global_, views.local]).flatten(0, 1).flatten(1)
    distance = torch.cdist(every, every) + 100 * torch.eye(len(every))
    assert distance.min() > 1


def test_the_images_themselves_do_not_change():
    image = torch.rand(3, 3, 32, 32)
    before = image.clone()
    MultiCrop(32, 16, 2)(image)
    SingleCrop(32)(image)
    Preprocess(32)(image)
    assert torch.equal(image, before)


def test_only_the_second_global_view_is_solarized():
    white = torch.full((400, 3, 16, 16), 0.95)
    views = MultiCrop(16, 16, 1)(white)
    dark = [
        (undo(view).mean((1, 2, 3)) < 0.4).float().mean().item()
        for view in (*views.global_, views.local[0])
    ]
    assert dark[0] == dark[2] == 0
    assert_close(dark[1], 0.2, atol=0.08, rtol=0)


def test_blur_is_0_of_the_first_09_of_the_second_and_half_of_the_local_views():
    # Fine stripes: contrast between neighbours falls when blurred.
    stripes = (torch.arange(32) % 2).float().expand(300, 3, 32, 32)
    sharp = MultiCrop(32, 32, 1, global_scale=(1, 1), local_scale=(1, 1))(stripes)
    blurred = []
    for view in (*sharp.global_, sharp.local[0]):
        unit = undo(view)
        step = (unit[..., 1:] - unit[..., :-1]).abs().mean((1, 2, 3))
        blurred.append((step < 0.3).float().mean().item())
    assert blurred[0] == 0
    # A sigma below 0.5, a fifth of the draws, leaves the stripes as they are.
    assert 0.6 < blurred[1] < 0.85
    assert 0.3 < blurred[2] < 0.5


def test_channels_that_are_not_rgb_keep_their_colour_apart():
    image = torch.zeros(64, 4, 16, 16)
    image[:, 0] = 0.8
    views = MultiCrop(16, 16, 1, mean=[0.0], std=[1.0])(image)
    for view in views:
        assert view[:, :, 0].min() > 0.5
        assert view[:, :, 1:].max() < 0.12


@pytest.mark.parametrize(
    ('channels', 'strength', 'words'),
    [
        (3, 1.0, 'solarize'),
        (13, 1.0, '13 channels are not RGB: per band gain 0.8 to 1.2'),
        (13, 0.5, '13 channels are not RGB: per band gain 0.9 to 1.1'),
        (13, 0.0, 'no change of values'),
    ],
)
def test_the_summary_names_what_is_done(channels, strength, words):
    line = MultiCrop(96, 48, 6, strength=strength).summary(channels)
    assert line.startswith('2 global views of 96 px, 6 local views of 48 px')
    assert words in line
    assert '\n' not in line


def test_autocast_does_not_touch_the_views(monkeypatch):
    monkeypatch.setattr(crops, '_one_by_one', crops._by_products)
    augment = MultiCrop(32, 16, 2)
    image = torch.rand(2, 3, 32, 32)
    torch.manual_seed(1)
    plain = augment(image)
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16):
        cast = augment(image)
    assert torch.equal(plain.global_, cast.global_)


@pytest.mark.parametrize(
    'augment', [MultiCrop(32, 16, 2), SingleCrop(32), Preprocess(32)]
)
@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (
            torch.rand(3, 32, 32),
            r'got shape \(3, 32, 32\): a single image needs a batch',
        ),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 'apply UnitRange first'),
        (torch.rand(1, 4, 32, 32), r'\*mean\* has 3 values, the image has 4 channels'),
    ],
)
def test_other_images_are_refused(augment, image, message):
    with pytest.raises(ValueError, match=message):
        augment(image)


def test_views_need_no_place_in_a_checkpoint():
    assert not MultiCrop(32, 16, 2).state_dict()


def test_single_crop_draws_one_box_for_a_series():
    image = torch.rand(2, 1, 3, 24, 24).expand(-1, 4, -1, -1, -1)
    view = SingleCrop(16)(image)
    assert view.shape == (2, 4, 3, 16, 16)
    assert torch.equal(view[:, 0], view[:, 3])
    assert SingleCrop(16)(image[:, 0]).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ('image_size', 'shape'), [(32, (32, 32)), ((16, 24), (16, 24))]
)
def test_preprocess_resizes_the_whole_image(image_size, shape):
    image = torch.rand(2, 3, 50, 70)
    expected = F.interpolate(image, size=shape, mode='bicubic', antialias=True)
    view = Preprocess(image_size)(image)
    assert_close(undo(view), expected.clamp(0, 1))
    series = Preprocess(image_size)(image[:, None])
    assert torch.equal(series[:, 0], view)


@pytest.mark.parametrize('size', [16, 8])
def test_preprocess_keeps_missing_pixels_apart(size):
    image = torch.rand(1, 2, 16, 16)
    whole = Preprocess(size)
    whole.normalize = torch.nn.Identity()
    expected = whole(image)
    image[0, 1, :3, 5] = torch.nan
    view = whole(image)
    missing = view.isnan()
    assert missing.any()
    assert missing.float().mean() < 0.2
    assert not missing[0, 0].any()
    assert_close(view[~missing], expected[~missing])
    if size == 16:
        assert torch.equal(missing, image.isnan())


def test_preprocess_tells_its_statistics():
    view = Preprocess(32, mean=[0.5], std=[0.25])
    assert (view.mean, view.std) == ((0.5,), (0.25,))
    assert_close(view(torch.full((1, 3, 8, 8), 0.75)), torch.ones(1, 3, 32, 32))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an accelerator')
def test_one_seed_gives_the_same_views_on_an_accelerator():
    augment = MultiCrop(32, 16, 4)
    image = torch.rand(8, 3, 40, 40)
    torch.manual_seed(1)
    expected = augment(image)
    torch.manual_seed(1)
    views = augment.cuda()(image.cuda())
    for view, other in zip(views, expected, strict=True):
        # A value at the threshold of solarization may fall to the other side.
        far = (view.cpu() - other).abs() > 1e-3
        assert far.float().mean() < 1e-3


def test_single_crop_marks_what_missing_pixels_touched():
    image = torch.rand(2, 3, 32, 32)
    torch.manual_seed(3)
    whole = SingleCrop(16)(image)
    image[1, 2, :, :12] = torch.nan
    torch.manual_seed(3)
    view = SingleCrop(16)(image)
    missing = view.isnan()
    assert missing[1, 2].any()
    assert not missing[0].any()
    assert not missing[1, :2].any()
    # Far from what is missing nothing changes.
    assert torch.equal(view[~missing], whole[~missing])


def test_single_crop_of_nothing_is_nothing():
    assert SingleCrop(16)(torch.full((1, 3, 24, 24), torch.nan)).isnan().all()


def test_single_crop_sums_itself_up():
    line = SingleCrop(64, (0.5, 1.0)).summary(10)
    assert line.startswith('1 view of 64 px, 0.5 to 1 of the area')


@pytest.mark.parametrize('place', ['cpu', 'meta'])
@pytest.mark.parametrize(
    ('mean', 'std'),
    [([nan], [1.0]), ([1e39], [1.0]), ([0.5], [0.0]), ([0.5], [1e-50]), ([0.5], [inf])],
)
def test_statistics_that_are_no_numbers_are_refused_wherever_it_is_built(
    place, mean, std
):
    with torch.device(place):
        Normalize([0.5], [0.2])
        with pytest.raises(ValueError, match='give finite values'):
            Normalize(mean, std)


def test_overhead_views_are_turned_and_off_by_default():
    options = {'strength': 0, 'global_scale': (1, 1), 'mean': [0.0], 'std': [1.0]}
    ramp = torch.linspace(0, 1, 32).expand(8, 2, 32, 32)  # brighter to the right
    for overhead in (False, True):
        torch.manual_seed(1)
        augment = MultiCrop(32, 16, 2, overhead=overhead, **options)
        views = augment(ramp)
        steps = [view.diff(dim=-2).abs().amax((-3, -2, -1)) for view in views]
        turned = torch.cat([step.flatten() for step in steps]) > 1e-3
        assert bool(turned.any()) == overhead
        assert ('quarter turns' in augment.summary(2)) == overhead
    assert not MultiCropOptions().overhead
    built = MultiCropOptions(overhead=True).build(32, 16, [0.5], [0.25])
    assert built.overhead


@pytest.mark.parametrize('overhead', [False, True])
def test_an_anchor_sees_the_same_crops_larger_and_without_photometric_changes(overhead):
    image = torch.rand(3, 3, 40, 40)
    image = F.interpolate(image, scale_factor=2, mode='bicubic').clamp(0, 1)
    statistics = (0.5,) * 3, (0.25,) * 3
    torch.manual_seed(0)
    options = {'mean': statistics[0], 'std': statistics[1], 'overhead': overhead}
    changed = MultiCrop(32, 16, 2, **options)(image)
    torch.manual_seed(0)
    views = MultiCrop(32, 16, 2, anchor_size=64, **options)(image)
    torch.manual_seed(0)
    plain = MultiCrop(32, 16, 2, strength=0, **options)(image)
    assert changed._fields == ('global_', 'local')
    assert torch.equal(views.global_, changed.global_)
    assert torch.equal(views.local, changed.local)
    assert views.anchor.shape == (2, 3, 3, 64, 64)
    smaller = F.avg_pool2d(views.anchor.flatten(0, 1), 2).view_as(plain.global_)
    assert (smaller - plain.global_).abs().mean() < 0.1
    assert (changed.global_ - plain.global_).abs().mean() > 0.2
