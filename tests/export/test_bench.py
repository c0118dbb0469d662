"""A backbone as torchgeo-bench builds and calls it."""

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, lora, save_delta
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks.run.backbone import build_backbone

SIZES = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
MODEL = 'vit_tiny_patch16_224'


@dataclass
class Band:
    """What torchgeo-bench tells of a channel."""

    source_name: str
    max: float


@pytest.fixture
def bench(monkeypatch):
    """The class, on the interface of torchgeo-bench 0.4 if that is not installed."""

    class BenchModel(torch.nn.Module):
        def __init__(self, bands, normalization):
            super().__init__()
            assert normalization == 'identity'
            self.bands = bands

        def forward(self, images):
            return self._forward_patch_features(images)

    try:
        importlib.import_module('torchgeo_bench.models.interface')
    except ImportError:
        names = ('torchgeo_bench', 'torchgeo_bench.models')
        for name in (*names, 'torchgeo_bench.models.interface'):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        interface = sys.modules['torchgeo_bench.models.interface']
        monkeypatch.setattr(interface, 'BenchModel', BenchModel, raising=False)
    monkeypatch.delitem(sys.modules, 'torchgeo_explora.export.bench', raising=False)
    yield importlib.import_module('torchgeo_explora.export.bench').ExploraBench
    sys.modules.pop('torchgeo_explora.export.bench', None)


@pytest.fixture
def small(monkeypatch, bench):
    """Build small models by the name of a large one."""
    module = sys.modules['torchgeo_explora.export.bench']

    def build(model, weights, *arguments, **options):
        weights = None if weights is True else weights
        return build_backbone(model, weights, *arguments, model_args=SIZES, **options)

    monkeypatch.setattr(module, 'build_backbone', build)
    return bench


@pytest.mark.parametrize(('most', 'high'), [(28_000, 10_000), (255, 255), (1.3, 1)])
def test_values_are_mapped_as_the_largest_tells(small, most, high):
    torch.manual_seed(0)
    bands = [Band(f'0{number} - Band', most) for number in (4, 3, 2)]
    model = small(bands, MODEL, weights=True, image_size=32)
    image = torch.rand(2, 3, 32, 32)
    found = model(image * high)
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (model.backbone.mean, model.backbone.std)
    )
    assert_close(found, model.backbone((image - mean) / std).cls)


def test_bands_are_found_by_name(small, monkeypatch):
    torch.manual_seed(0)
    module = sys.modules['torchgeo_explora.export.bench']
    backbone = ViT(MODEL, None, None, 32, bands=['B04', 'B8A'], **SIZES)
    monkeypatch.setattr(module, 'build_backbone', lambda *_, **options: backbone)
    bands = [Band('8A - Vegetation Red Edge', 1), Band('B03', 1), Band('B04', 1)]
    model = small(bands, MODEL, image_size=32, pooling='mean')
    image = torch.rand(2, 3, 32, 32)
    mean, std = sum(backbone.mean) / 3, sum(backbone.std) / 3
    expected = backbone((image[:, [2, 0]] - mean) / std).patch.mean(1)
    assert_close(model(image), expected)


def test_a_delta_is_folded_in(small, tmp_path):
    torch.manual_seed(0)
    base = ViT(MODEL, None, 3, 32, **SIZES)
    torch.save(base.canonical_state_dict(), tmp_path / 'base.pth')
    adapted = ViT(MODEL, tmp_path / 'base.pth', 3, 32, **SIZES)
    adapt(adapted, Adaptation(adapter=lora(2)))
    with torch.no_grad():
        adapted.blocks[-1].mlp.fc1.weight.mul_(2)
    save_delta(adapted, tmp_path / 'delta.safetensors')
    bands = [Band(name, 1) for name in ('red', 'green', 'blue')]
    model = small(
        bands,
        MODEL,
        str(tmp_path / 'base.pth'),
        str(tmp_path / 'delta.safetensors'),
    )
    assert model.view.image_size == model.backbone.image_size == (32, 32)
    image = torch.rand(2, 3, 32, 32)
    assert_close(model(image), adapted.eval()(model.view(image)).cls)
