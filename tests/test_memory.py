"""What the script says of a configuration's memory on paper."""

import importlib
from pathlib import Path

import pytest

from torchgeo_explora.tasks import ExploraDinoTask

ROOT = Path(__file__).parent.parent
GIANT = ROOT / 'configs/pretrain/fmow_rgb_dinov3_vit_7b.yaml'


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module('memory')


@pytest.mark.cli
def test_vit_7b_fits_a_card_of_80_gb_by_the_script(script):
    """80e9 bytes, of which a tenth is left to the allocator and the libraries."""
    found = script.of_configuration(GIANT)
    assert found['all'] < 0.9 * 80e9 / 2**30
    header = GIANT.read_text()
    assert f'computes {found["all"]} GiB' in header
    assert f'{found["per image"]} GiB for each image' in header


def test_memory_follows_what_saves_it(script):
    def found(**options):
        task = ExploraDinoTask(
            'vit_small_patch16_dinov3',
            weights=None,
            image_size=64,
            objective={'prototypes': 16},
            model_args={'embed_dim': 48, 'depth': 6, 'num_heads': 2},
            **options,
        )
        return script.memory(task, 100_000)

    plain = found()
    assert found(checkpointing=True)['all'] < 0.5 * plain['all']
    assert found(frozen_dtype='bfloat16')['fixed'] <= plain['fixed']
    assert found(views={'local_views': 0})['all'] < 0.8 * plain['all']
