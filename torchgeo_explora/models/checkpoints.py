"""Published weights, converted to the names of our backbones.

Each format has a function `from_*`, from the content of a file to (backbone, rest).
Formats that are also exported have a function `to_*`, from these to the tensors of a
file. They only rename and join tensors; resizing is left to the backbone.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from timm.models import adapt_input_conv
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models.formats.files import (
    SUFFIXES,
    hub_or_offline,
    impatient,
    read_file,
    read_metadata,
    warn_unchecked,
)
from torchgeo_explora.models.formats.names import State, fuse_qkv, split_qkv, unwrapped
from torchgeo_explora.models.formats.published import (
    from_dinov2,
    from_explora,
    from_mae,
    from_timm,
    to_dinov2,
    to_timm,
)
from torchgeo_explora.models.formats.satmae import (
    fold_class_code,
    from_satmae_group,
    from_satmae_temporal,
)
from torchgeo_explora.models.formats.transformers import (
    from_transformers,
    is_transformers,
    to_transformers,
)
from torchgeo_explora.models.formats.wrapped import (
    from_lightly_train,
    from_torchgeo,
    to_torchgeo,
    unwrapped_backbone,
)

__all__ = [
    'State',
    'fold_class_code',
    'from_any',
    'from_dinov2',
    'from_explora',
    'from_lightly_train',
    'from_mae',
    'from_satmae_group',
    'from_satmae_temporal',
    'from_timm',
    'from_torchgeo',
    'from_transformers',
    'fuse_qkv',
    'read_state',
    'split_qkv',
    'to_dinov2',
    'to_timm',
    'to_torchgeo',
    'to_transformers',
]


def from_any(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert the content of a file of any of these formats.

    Args:
        state: Content of the file.

    Returns:
        The backbone's tensors in timm's names, and the rest: decoder, heads and
        everything else in the file, named as by the converter of the format.

    Raises:
        ValueError: If the content is something other than tensors by name.
    """
    content = unwrapped(state)
    tensors = any(isinstance(value, torch.Tensor) for value in content.values())
    if content and not (tensors and all(isinstance(name, str) for name in content)):
        raise ValueError(
            f'a state dict has tensors by name, not {str([*content])[:60]}: save'
            ' model.state_dict()'
        )
    inner, outer = unwrapped_backbone(content)
    if is_transformers(inner):
        backbone, rest = from_transformers(inner)
    else:
        # ExPLoRA's names include DINOv2's, which include MAE's and timm's. A rule does
        # not touch what it does not know, so one call serves all without guessing.
        backbone, rest = from_explora(inner)
    return fold_class_code(backbone), rest | outer


def read_state(
    weights: WeightsEnum | PathLike[str] | str | bool,
    model: str,
    in_channels: int = 3,
) -> tuple[State, State]:
    """Read published weights under timm's names.

    Args:
        weights: True for timm's own weights of *model* at their native size; the path
            of a .safetensors, .pth, .pt, .bin or .ckpt file in one of these formats;
            the name of another timm model, for its weights; a torchvision weights enum,
            or the name of one that `torchgeo.models.get_weight` knows.
        model: Name of the timm model, used if *weights* is True.
        in_channels: Number of channels wanted. Weights for 3 channels are repeated and
            rescaled, or summed to 1 channel, by timm's rule.

    Returns:
        The backbone's tensors, and the rest: mask token, decoder and heads.

    Raises:
        FileNotFoundError: If the weights are not on this machine and cannot be
            downloaded.
        ValueError: If *weights* is unknown, or the file holds more than plain data.
    """
    if weights is True:
        state = _from_timm(model)
    elif isinstance(weights, WeightsEnum):
        state = _from_enum(weights)
    elif isinstance(weights, PathLike) or Path(str(weights)).suffix in SUFFIXES:
        path = Path(weights)  # type: ignore[arg-type]
        state = read_file(path)
        _refuse_delta(state, read_metadata(path), path)
    elif timm.is_model(str(weights)):
        state = _from_timm(str(weights))
    else:
        state = _from_enum(_named(str(weights)))

    try:
        backbone, rest = from_any(state)
    except ValueError as error:
        raise ValueError(
            f'{weights} holds no weights of a backbone: {error}'
        ) from error
    kernel = backbone.get('patch_embed.proj.weight')
    if kernel is not None and kernel.shape[1] == 3 != in_channels:
        adapted = adapt_input_conv(in_channels, kernel)
        backbone['patch_embed.proj.weight'] = adapted
    return backbone, rest


def _refuse_delta(
    state: Mapping[str, Any], metadata: Mapping[str, str], path: Path
) -> None:
    """Refuse a file of pre-training, which does not hold a whole backbone."""
    said = 'explora' in state or 'adaptation' in metadata
    if said or any('.lora_A.' in str(key) for key in state):
        raise ValueError(
            f'{path} holds a delta, not a whole backbone: build the backbone with the'
            ' weights of its base and call load_delta with the .safetensors file, or'
            ' merge the delta into its base with `explora merge`'
        )


def _from_timm(model: str) -> Mapping[str, Any]:
    try:
        with hub_or_offline():
            vit = timm.create_model(model, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        config = timm.models.get_pretrained_cfg(model)
        hub = config.hf_hub_id if config else None
        if not hub:
            raise FileNotFoundError(
                f'timm has no weights for model {model!r}: give the path of a'
                ' checkpoint as weights, or weights=None for random ones'
            ) from error
        raise FileNotFoundError(
            f'could not get the weights of {model!r}: download model.safetensors from'
            f' https://huggingface.co/{hub} and give its path as weights, or fetch it'
            f' into {HF_HUB_CACHE} with: hf download {hub} model.safetensors'
        ) from error
    return vit.state_dict()


def _from_enum(weights: WeightsEnum) -> Mapping[str, Any]:
    cache = Path(torch.hub.get_dir()) / 'checkpoints'
    name = weights.url.rpartition('/')[2]
    # The authors' own weights say so themselves.
    if (
        type(weights).get_state_dict is WeightsEnum.get_state_dict
        and not torch.hub.HASH_REGEX.search(name)
        and not (cache / name).is_file()
    ):
        warn_unchecked(weights.url)
    try:
        with impatient():
            return weights.get_state_dict(
                progress=True, check_hash=True, weights_only=True
            )
    except FileNotFoundError:
        # The message already says where to put the file.
        raise
    except OSError as error:
        raise FileNotFoundError(
            f'could not get {weights}: download {weights.url} into {cache}, or give'
            ' the path of the file as weights'
        ) from error


def _named(name: str) -> WeightsEnum:
    # Slow to import, and needed only for names.
    from torchgeo.models import get_weight

    import torchgeo_explora.models.zoo.weights  # noqa: F401 - registers its names

    try:
        return get_weight(name)
    except ValueError as error:
        raise ValueError(
            f'weights {name!r} is neither a file ({", ".join(SUFFIXES)}) nor a name'
            " like 'ViTSmall16_Weights.SENTINEL2_ALL_MOCO' that"
            ' torchgeo.models.get_weight knows'
        ) from error
