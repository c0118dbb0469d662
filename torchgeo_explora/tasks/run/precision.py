"""The precision that suits a processor."""

import platform

import torch


def emulates_bfloat16() -> bool:
    """Return whether this machine's processor has no instructions for bfloat16.

    Products in bfloat16 then take longer than in float32: five times as long on a Xeon
    with AVX-512 alone. Of processors other than x86 nothing is known, so they count as
    having them.
    """
    if platform.machine().lower() not in ('x86_64', 'amd64'):
        return False
    return not (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
