"""What is drawn follows the laws of torchvision's operations: two samples, one law.

Ours are parameters of a batch; torchvision's are drawn image by image. Each pair is
held together by the Kolmogorov-Smirnov test with fixed seeds; a wrong law of the same
range is held apart by it.
"""

import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import v2

from torchgeo_explora.augment import MultiCrop
from torchgeo_explora.augment.crops import crop_boxes
from torchgeo_explora.augment.photometric import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    Solarize,
)

COUNT = 2000
#: One in a thousand samples with the right law would fail; the seeds are fixed.
LEAST = 1e-3


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def same_law(ours, theirs):
    return ks_2samp(torch.as_tensor(ours), torch.as_tensor(theirs)).pvalue > LEAST


def drawn(transform, image):
    """Return torchvision's own draws of parameters, one dict per image."""
    return [transform.make_params([image]) for _ in range(COUNT)]


@pytest.mark.parametrize('scale', [(0.32, 1.0), (0.05, 0.32)])
def test_area_aspect_and_position_of_crops(scale):
    side = 256
    ours = crop_boxes(COUNT, (side, side), scale).double()
    transform = v2.RandomResizedCrop(224, scale)
    params = drawn(transform, torch.empty(3, side, side))
    theirs = torch.tensor(
        [[p[key] for key in ('top', 'left', 'height', 'width')] for p in params]
    ).double()

    def laws(boxes):
        top, left, height, width = boxes.T
        # Positions as a share of the room that there is.
        yield height * width
        yield (width / height).log()
        yield (top + 0.5) / (side - height + 1)
        yield (left + 0.5) / (side - width + 1)

    for one, other in zip(laws(ours), laws(theirs), strict=True):
        assert same_law(one, other)


def test_four_factors_and_their_order():
    found = ColorJitter().generate_parameters((COUNT, 3, 8, 8))
    image = torch.empty(3, 8, 8)
    params = drawn(v2.ColorJitter(0.4, 0.4, 0.2, 0.1), image)
    names = ('brightness_factor', 'contrast_factor', 'saturation_factor', 'hue_factor')
    for number, name in enumerate(names):
        own = found['factor'][:, number]
        theirs = torch.tensor([float(p[name]) for p in params])
        assert same_law(own, theirs)
        # Half as wide, or drawn as a logarithm, it would be another law.
        assert not same_law((own - own.mean()) / 2 + own.mean(), theirs)
    # Where each step comes: row by row, a permutation.
    own = found['order']
    theirs = torch.stack([torch.as_tensor(p['fn_idx']) for p in params])
    for order in (own, theirs):
        codes = (order * torch.tensor([64, 16, 4, 1])).sum(1)
        counts = codes.unique(return_counts=True)[1]
        assert len(counts) == 24
        assert chisquare(counts).pvalue > LEAST


def test_sigma_of_the_blur():
    own = GaussianBlur(1.0).generate_parameters((COUNT, 3, 8, 8))['sigma']
    params = drawn(v2.GaussianBlur(9, (0.1, 2.0)), torch.empty(3, 8, 8))
    assert same_law(own, [p['sigma'][0] for p in params])
    assert not same_law(0.1 + 1.9 * torch.rand(COUNT).square(), own)


@pytest.mark.parametrize(
    ('operation', 'transform'),
    [
        (ColorJitter(), v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8)),
        (Grayscale(0.2), v2.RandomGrayscale(0.2)),
        (GaussianBlur(0.9), v2.RandomApply([v2.GaussianBlur(9, (0.5, 2.0))], 0.9)),
        (GaussianBlur(0.5), v2.RandomApply([v2.GaussianBlur(9, (0.5, 2.0))], 0.5)),
        (Solarize(0.2), v2.RandomSolarize(128 / 255, 0.2)),
    ],
)
def test_how_often_an_operation_is_applied(operation, transform):
    own = operation.forward_parameters((COUNT, 3, 8, 8))['batch_prob'].mean().item()
    image = torch.rand(3, 6, 6)
    repeats = 600
    changed = sum(not torch.equal(transform(image), image) for _ in range(repeats))
    # Four standard errors of each.
    error = 4 * (operation.p * (1 - operation.p)) ** 0.5
    assert own == pytest.approx(operation.p, abs=error / COUNT**0.5)
    assert changed / repeats == pytest.approx(operation.p, abs=error / repeats**0.5)


def test_each_view_has_its_own_draws_of_all_this():
    """Mirrored or not, and gray or not: by view, at DINOv2's rates."""
    ramp = torch.linspace(0.2, 0.8, 32)
    image = torch.stack([ramp, 0.5 * ramp, 0.25 * ramp])[:, None].expand(3, 32, 32)
    augment = MultiCrop(8, 8, local_views=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = 400
    views = torch.cat([*augment(image.expand(batch, -1, -1, -1))])
    gray = (views.amax(2) - views.amin(2)).flatten(2).amax(2) < 1e-6
    for rate in gray.double().mean(1):
        assert rate == pytest.approx(0.2, abs=4 * (0.16 / batch) ** 0.5)
    plain = MultiCrop(8, 8, 2, mean=(0.0,) * 3, std=(1.0,) * 3, strength=0.0)
    views = torch.cat([*plain(image.expand(batch, -1, -1, -1))])
    mirrored = (views[:, :, 0, 0, 0] > views[:, :, 0, 0, -1]).double()
    for rate in mirrored.mean(1):
        assert rate == pytest.approx(0.5, abs=4 * (0.25 / batch) ** 0.5)
    # Views of one image are mirrored independently of each other.
    together = torch.corrcoef(mirrored) - torch.eye(4, dtype=torch.double)
    assert together.abs().max() < 4 / batch**0.5
