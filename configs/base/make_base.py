"""Fold a delta that holds a whole backbone into one float16 file in timm's names.

Usage: python configs/base/make_base.py outputs/synthetic_base/last.safetensors
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from torchgeo_explora.adapt import read_delta_metadata
from torchgeo_explora.models import ViT

TARGET = Path(__file__).parent / 'synthetic_vit.safetensors'


def main(source: str) -> None:
    """Write the base beside this file."""
    backbone = ViT(**read_delta_metadata(source)['arguments'])
    backbone.load_state_dict(load_file(source))
    state = backbone.canonical_state_dict()
    save_file({k: v.to(torch.float16).contiguous() for k, v in state.items()}, TARGET)
    print(f'{TARGET}: {TARGET.stat().st_size / 2**20:.2f} MiB')


if __name__ == '__main__':
    main(*sys.argv[1:])
