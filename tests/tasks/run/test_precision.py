"""Which processors have instructions for bfloat16."""

import platform

import pytest
import torch

from torchgeo_explora.tasks.run.precision import emulates_bfloat16


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
