"""Which processors have instructions for bfloat16, and what a run says of it."""

import platform
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.run import precision as module
from torchgeo_explora.tasks.run.precision import advise_precision, emulates_bfloat16


@pytest.mark.parametrize(
    ('machine', 'avx', 'amx', 'emulated'),
    [
        ('x86_64', False, False, True),
        ('AMD64', False, False, True),
        ('x86_64', True, False, False),
        ('x86_64', False, True, False),
        ('arm64', False, False, False),
    ],
)
def test_that_x86_needs_instructions(monkeypatch, machine, avx, amx, emulated):
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: avx)
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    assert emulates_bfloat16() is emulated


@pytest.mark.parametrize(
    ('precision', 'emulated', 'told'),
    [
        ('bf16-mixed', True, 1),
        ('bf16', True, 1),
        ('bf16-mixed', False, 0),
        ('32-true', True, 0),
    ],
)
@pytest.mark.filterwarnings('ignore')
def test_that_a_run_reports_slow_steps_once(
    precision, emulated, told, tiny, folder, tmp_path, caplog, monkeypatch
):
    caplog.set_level('INFO')
    monkeypatch.setattr(module, 'emulates_bfloat16', lambda: emulated)
    trainer = Trainer(
        accelerator='cpu',
        precision=precision,
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    task = ExploraDinoTask(**(tiny | {'recipe': 'short'}))
    trainer.fit(task, ImageFolderDataModule(folder, batch_size=4))
    assert caplog.text.count('set trainer.precision=32-true') == told


@pytest.mark.parametrize(('device', 'told'), [('cpu', 1), ('cuda', 0), ('mps', 0)])
def test_that_only_the_processor_matters(device, told, caplog, monkeypatch):
    caplog.set_level('INFO')
    monkeypatch.setattr(module, 'emulates_bfloat16', lambda: True)
    strategy = SimpleNamespace(root_device=torch.device(device))
    advise_precision(SimpleNamespace(strategy=strategy, precision='bf16-mixed'))
    assert caplog.text.count('set trainer.precision=32-true') == told
