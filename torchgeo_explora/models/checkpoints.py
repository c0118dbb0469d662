"""Published weights, converted to the names of our backbones.

Each format has a function `from_*`, from the content of a file to (backbone, rest).
Formats that are also exported have a function `to_*`, from these to the tensors of a
file. These functions only rename and join tensors; resizing is left to the backbone.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import GatedRepoError
from timm.models import adapt_input_conv
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models.formats.dinov3 import (
    from_dinov3,
    from_transformers_dinov3,
    is_dinov3,
    is_transformers_dinov3,
    to_dinov3,
    to_transformers_dinov3,
)
from torchgeo_explora.models.formats.files import (
    SUFFIXES,
    fetch_address,
    hub_or_offline,
    impatient,
    read_file,
    read_metadata,
    warn_unchecked,
)
from torchgeo_explora.models.formats.model_names import timm_name
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
from torchgeo_explora.models.zoo.licences import where_to_get
from torchgeo_explora.paths import expanded

__all__ = [
    'State',
    'fold_class_code',
    'from_any',
    'from_dinov2',
    'from_dinov3',
    'from_explora',
    'from_lightly_train',
    'from_mae',
    'from_satmae_group',
    'from_satmae_temporal',
    'from_timm',
    'from_torchgeo',
    'from_transformers',
    'from_transformers_dinov3',
    'fuse_qkv',
    'read_state',
    'split_qkv',
    'to_dinov2',
    'to_dinov3',
    'to_timm',
    'to_torchgeo',
    'to_transformers',
    'to_transformers_dinov3',
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
    if is_transformers_dinov3(inner):
        backbone, rest = from_transformers_dinov3(inner)
    elif is_dinov3(inner):
        backbone, rest = from_dinov3(inner)
    elif is_transformers(inner):
        backbone, rest = from_transformers(inner)
    else:
        # ExPLoRA's names include DINOv2's, which include MAE's and timm's. Rules leave
        # unknown names unchanged, so one call serves all formats without guessing.
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
            or the https:// address of a .safetensors, .pth, .pt, .bin or .ckpt file in
            one of these formats; the name of another timm model, for its weights; a
            torchvision weights enum, or the name of one that
            `torchgeo.models.get_weight` knows.
        model: Name of the timm model, used if *weights* is True.
        in_channels: Number of channels wanted. Weights for 3 channels are repeated and
            rescaled, or summed to 1 channel, by timm's rule.

    Returns:
        The backbone's tensors, and the rest: mask token, decoder and heads.

    Raises:
        FileNotFoundError: If the weights are not on this machine and cannot be
            downloaded.
        ValueError: If *weights* is unknown, the file holds more than plain data, the
            weights cannot be of a plain ViT, or values are not finite.
    """
    if weights is True:
        state = _from_timm(model)
    elif isinstance(weights, WeightsEnum):
        state = _from_enum(weights)
    elif isinstance(weights, str) and '://' in weights:
        path = fetch_address(weights)
        state = read_file(path)
        _refuse_delta(state, read_metadata(path), path)
    elif isinstance(weights, PathLike) or Path(str(weights)).suffix in SUFFIXES:
        path = Path(expanded(weights))  # type: ignore[arg-type]
        if not path.is_file() and (terms := where_to_get(path.name)):
            raise FileNotFoundError(
                f'weights file {path} does not exist: {terms}; put the file there'
            )
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
            f'{weights} does not hold the weights of a backbone: {error}'
        ) from error
    _refuse_classifier(backbone, rest, weights)
    _check_values(backbone, weights)
    kernel = backbone.get('patch_embed.proj.weight')
    if kernel is not None and kernel.shape[1] == 3 != in_channels:
        adapted = adapt_input_conv(in_channels, kernel)
        backbone['patch_embed.proj.weight'] = adapted
    return backbone, rest


def _refuse_delta(
    state: Mapping[str, Any], metadata: Mapping[str, str], path: Path
) -> None:
    """Refuse a file from pre-training, which does not hold a whole backbone."""
    said = 'explora' in state or 'adaptation' in metadata
    if said or any('.lora_A.' in str(key) for key in state):
        raise ValueError(
            f'{path} holds a delta, not a whole backbone: build the backbone with the'
            ' weights of its base and call load_delta with the .safetensors file, or'
            ' merge the delta into its base with `explora merge`'
        )


def _check_values(backbone: State, weights: object) -> None:
    """Refuse tensors that would be cast, and values that would spoil every feature."""
    tensors = {k: v for k, v in backbone.items() if isinstance(v, torch.Tensor)}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            found = f'{tensor.dtype}, {tensor.layout}'
            raise ValueError(
                f'*weights* {weights} hold {name} as {found}: expected a dense tensor'
                ' of floating-point numbers, such as torch.float32'
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f'*weights* {weights} hold values in {name} that are not finite: use'
                ' a file from before the training diverged, or download it again'
            )


def _refuse_classifier(backbone: State, rest: State, weights: object) -> None:
    """Refuse weights with other tokens, or another norm, than the backbones here."""
    if 'dist_token' in backbone:
        raise ValueError(
            f'*weights* {weights} are of a distilled DeiT, whose distillation token'
            ' (dist_token) does not exist in a plain ViT: use weights that were trained'
            ' without distillation, such as deit_base_patch16_224'
        )
    if 'norm.weight' not in backbone and 'fc_norm.weight' in rest:
        raise ValueError(
            f'*weights* {weights} are of a classifier on the mean of the patch tokens:'
            ' they normalise that mean (fc_norm) and have no final norm of the tokens'
            ' (norm), which a backbone needs; use the weights from before the'
            ' fine-tuning, such as vit_base_patch16_224.mae'
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
        page = f'https://huggingface.co/{hub}'
        terms = where_to_get(model)
        note = f'; {terms}' if terms else ''
        if isinstance(error, GatedRepoError):
            note = f'; they are gated: accept their licence at {page}, and log in with'
            note += f' `hf auth login` first{f"; {terms}" if terms else ""}'
        raise FileNotFoundError(
            f'could not get the weights of {model!r}: download model.safetensors from'
            f' {page} and give its path as weights, or fetch it into {HF_HUB_CACHE}'
            f' with: hf download {hub} model.safetensors{note}'
        ) from error
    return vit.state_dict()


def _from_enum(weights: WeightsEnum) -> Mapping[str, Any]:
    cache = Path(torch.hub.get_dir()) / 'checkpoints'
    name = weights.url.rpartition('/')[2]
    # The authors' own weights give this warning themselves.
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
    # Slow to import, and only needed for names.
    from torchgeo.models import get_weight

    import torchgeo_explora.models.zoo.weights  # noqa: F401 - registers its names

    try:
        return get_weight(name)
    except ValueError as error:
        known = timm_name(name)
        hint = f': for the weights that timm calls {known}, give that name'
        raise ValueError(
            f'*weights* {name!r} is neither a file ({", ".join(SUFFIXES)}), nor an'
            ' address, nor a model of timm, nor a name'
            " like 'ViTSmall16_Weights.SENTINEL2_ALL_MOCO' that"
            f' torchgeo.models.get_weight knows{hint if known else ""}'
        ) from error
