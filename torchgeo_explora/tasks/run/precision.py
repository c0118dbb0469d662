"""The precision that suits a processor."""

import platform

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info


def emulates_bfloat16() -> bool:
    """Return whether this machine's processor has no instructions for bfloat16.

    Products in bfloat16 then take longer than in float32: on a Xeon with AVX-512 alone,
    one of 2048 x 192 by 192 x 768 took five times as long. Of processors other than x86
    nothing is known, so they count as having them.
    """
    if platform.machine().lower() not in ('x86_64', 'amd64'):
        return False
    return not (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def advise_precision(trainer: Trainer) -> None:
    """Report a precision that makes a run slow on this processor."""
    on_cpu = trainer.strategy.root_device.type == 'cpu'
    if on_cpu and trainer.precision == 'bf16-mixed' and emulates_bfloat16():
        rank_zero_info(
            'this processor has no instructions for bfloat16 and emulates them, which'
            ' makes steps much longer: set trainer.precision=32-true'
            ' (without frozen_dtype)'
        )
