"""TorchGeo's tasks with a value for each pixel learn on exported backbones.

They are built by the code of docs/howto/export.md, with a small decoder: that of stock
has 28 million parameters.
"""

import re
from functools import partial
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn.functional import binary_cross_entropy, interpolate, mse_loss
from torch.testing import assert_close

from torchgeo_explora.export import export_torchgeo_segmentation

PAGE = Path(__file__).parents[2] / 'docs' / 'howto' / 'export.md'
SIDE = 32
SMALL = {
    'decoder_intermediate_channels': (16, 16, 32, 32),
    'decoder_fusion_channels': 32,
}


@pytest.fixture
def tasks(trained, tmp_path, monkeypatch):
    """The tasks of the page by their names there, and the backbone, `ours`."""
    backbone = trained('stock')
    name = export_torchgeo_segmentation(backbone, tmp_path / 'pixels.ckpt')
    export_torchgeo_segmentation(backbone, tmp_path / 'dates.ckpt', dates=2)
    (code,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    assert 'tu-vit_large_patch16_224.mae' in code
    code = code.replace('tu-vit_large_patch16_224.mae', name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smp, 'DPT', partial(smp.DPT, **SMALL))
    found = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The code is the page's own.
        exec(code, found)  # noqa: S102
    for task in ('heights', 'changes'):
        found[task].log = found[task].log_dict = lambda *_, **__: None
    return {**found, 'ours': backbone}


def brightness(count, generator):
    """Return images whose brightness varies smoothly, (count, 3, SIDE, SIDE)."""
    coarse = torch.randn(count, 1, 2, 2, generator=generator)
    smooth = interpolate(coarse, (SIDE, SIDE), mode='bicubic', align_corners=False)
    return smooth.repeat(1, 3, 1, 1)


def noisy(images, generator):
    return images + 0.1 * torch.randn(images.shape, generator=generator)


def heights(count, seed):
    """Return a batch whose target is a smooth function of each pixel's brightness."""
    generator = torch.Generator().manual_seed(seed)
    image = noisy(brightness(count, generator), generator)
    return {'image': image, 'mask': image.mean(1).tanh()}


def changes(count, seed):
    """Return pairs of images; half of them differ in a square that is marked.

    The square is brighter or darker in the second image. In the other half both images
    have it, so that one of them does not tell.
    """
    generator = torch.Generator().manual_seed(seed)
    first = brightness(count, generator)
    changed = torch.zeros(count, 1, SIDE, SIDE)
    for mask in changed:
        top, left = (16 * torch.randint(2, (2,), generator=generator)).tolist()
        mask[:, top : top + 16, left : left + 16] = 1
    sign = 2 * torch.randint(2, (count, 1, 1, 1), generator=generator) - 1
    second = first + 2 * sign * changed
    first[1::2] = second[1::2]
    changed[1::2] = 0
    pair = torch.stack([first, second], 1)
    return {'image': noisy(pair, generator), 'mask': changed.long()}


def train(task, draw, steps):
    """Train as the task would, on new samples in each step."""
    optimizer = task.configure_optimizers()['optimizer']
    task.train()
    for step in range(steps):
        optimizer.zero_grad()
        task.training_step(draw(16, step), step).backward()
        optimizer.step()


@torch.no_grad()
def predicted(task, batch):
    return task.eval().predict_step(batch, 0)


def test_pixelwise_regression_learns(tasks):
    """On unseen images it is much better than the mean of their targets."""
    task, unseen = tasks['heights'], heights(32, 10_000)
    encoder = task.model.encoder.model
    tokens = encoder.forward_features(unseen['image'])
    expected = tasks['ours'](unseen['image']).cls
    assert_close(tokens[:, 0], expected, rtol=0, atol=1e-5)
    train(task, heights, 40)
    error = mse_loss(predicted(task, unseen)[:, 0], unseen['mask'])
    assert error < 0.5 * unseen['mask'].var(correction=0)


def test_change_detection_learns(tasks):
    """On unseen pairs it is much better than the share of changed pixels."""
    task, unseen = tasks['changes'], changes(64, 10_000)
    train(task, changes, 80)
    probability, truth = predicted(task, unseen), unseen['mask'].float()
    constant = truth.mean().expand(truth.shape)
    best = binary_cross_entropy(constant, truth)
    assert binary_cross_entropy(probability, truth) < 0.5 * best
    found = probability > 0.5
    both, either = found & (truth > 0), found | (truth > 0)
    assert both.sum() > 0.7 * either.sum()


@torch.no_grad()
def test_change_detection_starts_with_the_mean_of_both_dates(tasks):
    """So two equal images give the features of one, and a frozen encoder sees no order.

    The page says that the encoder has to train.
    """
    encoder = tasks['changes'].model.encoder.model
    first, second = changes(4, 0)['image'].unbind(1)
    for pair in ((first, second), (second, first)):
        tokens = encoder.forward_features(torch.cat(pair, 1))
        expected = tasks['ours']((first + second) / 2).cls
        assert_close(tokens[:, 0], expected, rtol=0, atol=1e-5)
    tokens = encoder.forward_features(torch.cat([first, first], 1))
    assert_close(tokens[:, 0], tasks['ours'](first).cls, rtol=0, atol=1e-5)
