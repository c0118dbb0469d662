"""The weights that ExPLoRA's authors published, as an enum like TorchGeo's.

Importing this file registers them, and the architectures, with TorchGeo.
"""

import warnings
from functools import partial
from typing import Any

import timm
import torch
import torchvision.transforms.v2 as T
from torch import Size, Tensor, nn
from torchvision.models._api import Weights, WeightsEnum

from torchgeo_explora.datasets.pixels.sentinel2 import reflectance_range
from torchgeo_explora.models.backbones.group_channel import SATMAE_BANDS
from torchgeo_explora.models.checkpoints import from_any
from torchgeo_explora.models.formats.files import fetch, read_file
from torchgeo_explora.models.formats.names import State
from torchgeo_explora.models.zoo.architectures import default_cfgs, with_weights

# Revision and checksums of the release are unknown, so `main` and no SHA-256 are used.
_RELEASE = 'https://huggingface.co/samarkhanna/ExPLoRA/resolve/main'
_SHARED = {
    'publication': 'https://arxiv.org/abs/2406.10973',
    'repo': 'https://github.com/samar-khanna/ExPLoRA',
    'sha256': None,
}
_RGB = {
    'dataset': 'fMoW-RGB',
    'in_chans': 3,
    'bands': ['R', 'G', 'B'],
    'img_size': 224,
    'ssl_method': 'explora-dinov2',
    'license': 'code Apache-2.0, base (DINOv2) Apache-2.0; the card of these weights'
    ' was not seen',
}


class UnitClip(T.Transform):
    """Scale the range of each band to [0, 1], and clip.

    Args:
        low: Value of each band that becomes 0.
        high: Value of each band that becomes 1.
    """

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...]) -> None:
        """Keep the range."""
        super().__init__()
        self.low = torch.tensor(low)[:, None, None]
        self.high = torch.tensor(high)[:, None, None]

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Return the values in [0, 1], (..., C, H, W)."""
        return ((inpt - self.low) / (self.high - self.low)).clamp(0, 1)


# The authors' evaluation transforms, for values as stored in the files.
_rgb_view = nn.Sequential(
    T.Normalize(mean=[0], std=[255]),
    T.Resize(256, interpolation=T.InterpolationMode.BICUBIC),
    T.CenterCrop(224),
    T.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
)
_sentinel_view = nn.Sequential(
    UnitClip(*reflectance_range(SATMAE_BANDS)),
    T.Resize(109, interpolation=T.InterpolationMode.BICUBIC),
    T.CenterCrop(96),
)


class ExploraWeights(WeightsEnum):
    """Encoders that the authors of ExPLoRA pre-trained on fMoW, with LoRA merged.

    The scores in `meta` are those of the paper, in percent, on fMoW's validation split.
    They were not reproduced here.

    Reference: Khanna et al., *ExPLoRA*, https://arxiv.org/abs/2406.10973.
    """

    FMOW_RGB = Weights(
        url=f'{_RELEASE}/explora_dinov2_fmow_rgb/'
        'explora_dinov2_vit_large_fmow_rgb_encoder_only.pth',
        transforms=_rgb_view,
        meta={
            **_SHARED,
            **_RGB,
            'model': 'explora_vit_large_patch14_224',
            'recipe': 'D-[24]-r64',
            'scores': {'linear probe': 77.48, 'LoRA-r8 fine-tuning': 79.28},
        },
    )

    FMOW_RGB_BASE = Weights(
        url=f'{_RELEASE}/explora_dinov2_fmow_rgb/'
        'explora_dinov2_vit_base_fmow_rgb_encoder_only.pth',
        transforms=_rgb_view,
        meta={
            **_SHARED,
            **_RGB,
            'model': 'explora_vit_base_patch14_224',
            'recipe': 'D-[12]-r64',
            'scores': {'linear probe': 75.11},
        },
    )

    FMOW_SENTINEL = Weights(
        url=f'{_RELEASE}/explora_mae_multispectral/'
        'explora_mae_fmow_sentinel_encoder_only.pth',
        transforms=_sentinel_view,
        meta={
            **_SHARED,
            'dataset': 'fMoW-Sentinel',
            'in_chans': 10,
            'bands': list(SATMAE_BANDS),
            'img_size': 96,
            'ssl_method': 'explora-mae',
            'license': 'CC-BY-NC-4.0, as everything derived from MAE (code'
            ' Apache-2.0); the card of these weights was not seen',
            'model': 'explora_vit_large_group_patch8_96',
            'recipe': 'M-[1,24]-r32',
            'scores': {'LoRA-r8 fine-tuning': 60.15},
        },
    )

    def get_state_dict(
        self,
        progress: bool = True,
        check_hash: bool = True,
        weights_only: bool = True,
    ) -> State:
        """Return the encoder's tensors under timm's names, downloaded once.

        Args:
            progress: Whether to show a progress bar while downloading.
            check_hash: Whether to compare the file's SHA-256 with `meta['sha256']`, if
                that is known. torch.hub's own rule is not used, since it would mistake
                parts of these file names for a hash.
            weights_only: Ignored: pickled objects are never loaded.

        Raises:
            FileNotFoundError: If the file is not in the cache and cannot be downloaded.
            ValueError: If it is not the published file.
        """
        sha256 = self.meta['sha256'] if check_hash else None
        path = fetch(self.url, sha256, progress)
        state, _ = from_any(read_file(path))
        wrong = _misfits(shapes(self.meta['model']), state)
        if wrong:
            raise ValueError(
                f'{path} does not hold {self}, which is of {self.meta["model"]}:'
                f' {"; ".join(wrong)}; remove the file, so that it is downloaded again'
            )
        return state


def shapes(model: str) -> dict[str, Size]:
    """Return the shape of each tensor of a timm model without a head."""
    with torch.device('meta'):
        built = timm.create_model(model, num_classes=0)
    # Backbones of this package have published names (fused qkv) only here.
    names = getattr(built, 'canonical_state_dict', built.state_dict)
    return {name: tensor.shape for name, tensor in names().items()}


def _misfits(expected: dict[str, Size], state: State) -> list[str]:
    """Describe missing and surplus tensors, and tensors of another shape."""
    found = {name: tensor.shape for name, tensor in state.items()}
    missing = sorted(expected.keys() - found.keys())
    surplus = sorted(found.keys() - expected.keys())
    wrong = [
        f'{name} is {tuple(found[name])}, expected {tuple(shape)}'
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    wrong += [f'missing {", ".join(missing)}'] if missing else []
    wrong += [f'not expected {", ".join(surplus)}'] if surplus else []
    return wrong


def register_with_torchgeo() -> None:
    """Make `torchgeo.models` know our architectures and `ExploraWeights` by name.

    TorchGeo has no public way to register, and plans to replace its registry with
    timm's: if its dictionaries are gone, a warning says what still works.
    """
    from torchgeo.models import api

    try:
        models, weights = api._model, api._model_weights
    except AttributeError:
        warnings.warn(
            'torchgeo_explora does not know the registry of this version of TorchGeo:'
            ' its models are found by timm.create_model, and its weights as'
            ' torchgeo_explora.ExploraWeights, but not by their names as strings',
            stacklevel=2,
        )
        return
    for name in default_cfgs:
        builder = partial(with_weights, name)
        models[name] = builder
        weights[name] = weights[builder] = ExploraWeights


register_with_torchgeo()
