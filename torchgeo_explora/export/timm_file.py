"""Whole backbones as files for timm, DINOv2, DINOv3 and TorchGeo."""

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import lightning
import timm
import torch
from safetensors.torch import save_file
from torch import Size, nn

from torchgeo_explora.adapt import base_fingerprint, fingerprint, merged
from torchgeo_explora.adapt.delta import lineage_merged
from torchgeo_explora.models import Backbone, RotaryViT
from torchgeo_explora.models.formats.dinov3 import PERIODS, to_dinov3
from torchgeo_explora.models.formats.files import sort_header
from torchgeo_explora.models.formats.names import State
from torchgeo_explora.models.formats.published import to_dinov2
from torchgeo_explora.models.formats.wrapped import to_torchgeo
from torchgeo_explora.models.zoo.architectures import names_of
from torchgeo_explora.version import __version__
from torchgeo_explora.writing import replacing


def plain_state(backbone: Backbone) -> State:
    """Return all weights under timm's names, float32 on the CPU, delta merged.

    Raises:
        ValueError: If the backbone has visual prompts or has lost its final norm.
    """
    blocks: Any = backbone.blocks
    if any(block._forward_pre_hooks for block in blocks):
        raise ValueError(
            'the backbone has visual prompts, which other libraries cannot hold:'
            ' fine-tune with prompts=0'
        )
    state = {
        name: tensor.to('cpu').contiguous()
        for name, tensor in merged(backbone).canonical_state_dict().items()
    }
    if 'norm.weight' not in state:
        raise ValueError(
            'the final norm was replaced by that of a head on mean tokens, and stock'
            " models read the class token: fine-tune with pooling='cls'"
        )
    return state


def export_timm(
    backbone: Backbone,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the backbone as safetensors under timm's names.

    `timm.create_model(name, checkpoint_path=path, num_classes=0, img_size=...)` reads
    the file if timm has the architecture. A backbone of this package always reads it as
    `weights=path`. The metadata hold the kind of backbone, its arguments, mean and
    standard deviation, and which deltas were merged.

    Args:
        backbone: Adapted or plain.
        path: The file, `*.safetensors`.
        metadata: Further strings for the metadata.

    Raises:
        OSError: If the file cannot be written; an old file stays as it was.
        ValueError: If the backbone has visual prompts or has lost its final norm.
    """
    state = plain_state(backbone)
    header = {
        **(metadata or {}),
        'format': 'pt',
        'version': __version__,
        'backbone': backbone.public_name(),
        'arguments': json.dumps(backbone.arguments),
        'base': base_fingerprint(backbone) or '',
        'lineage': lineage_merged(backbone) or '',
        'weights': fingerprint(state),
    }
    for name in ('mean', 'std'):
        if values := getattr(backbone, name, None):
            header[name] = json.dumps([*values])
    with replacing(path) as part:
        save_file(state, part, metadata=header)
        sort_header(part)


def export_dinov2(backbone: Backbone, path: str | os.PathLike[str]) -> None:
    """Write the backbone in the format of DINOv2's releases (facebookresearch/dinov2).

    `load_state_dict` of a model from DINOv2's hub takes the file, and so does
    `--pretrained-weights` of its evaluations. Build the model with the backbone's image
    size. The mask token, which only pre-training uses, is zero.

    Args:
        backbone: Adapted or plain, with DINOv2's LayerScale.
        path: The file, `*.pth`.

    Raises:
        OSError: If the file cannot be written; an old file stays as it was.
        ValueError: If DINOv2 has no such model, or the backbone has visual prompts or
            has lost its final norm.
    """
    mask_token = torch.zeros(1, backbone.embed_dim)
    state = to_dinov2(plain_state(backbone), {'mask_token': mask_token})
    with replacing(path) as part:
        torch.save(state, part)


def export_dinov3(backbone: RotaryViT, path: str | os.PathLike[str]) -> None:
    """Write a `RotaryViT` in the format of DINOv3's releases (facebookresearch/dinov3).

    Build the model with FAIR's code for the same architecture, and load the file with
    `load_state_dict`. The mask token, which only pre-training uses, is zero.

    Args:
        backbone: Adapted or plain.
        path: The file, `*.pth`.

    Raises:
        OSError: If the file cannot be written; an old file stays as it was.
        ValueError: If the backbone is of another kind, has visual prompts or has lost
            its final norm.
    """
    if not isinstance(backbone, RotaryViT):
        raise ValueError(
            f'DINOv3 has no model for a {type(backbone).__name__}: use export_timm'
        )
    rope: Any = backbone.rope
    rest = {
        'mask_token': torch.zeros(1, backbone.embed_dim),
        PERIODS: rope.periods.to('cpu', torch.bfloat16),
    }
    with replacing(path) as part:
        torch.save(to_dinov3(plain_state(backbone), rest), part)


def export_torchgeo(
    backbone: Backbone,
    path: str | os.PathLike[str],
    model: str | None = None,
    head: nn.Linear | None = None,
    task: Literal['binary', 'multiclass', 'multilabel'] = 'multiclass',
) -> str:
    """Write a checkpoint for `torchgeo.tasks.Classification(model, weights=path)`.

    `Regression` accepts it too. It loads with `weights_only=True`. With a head, it is
    also a whole task for `torchgeo test --ckpt_path` and
    `Classification.load_from_checkpoint`.

    Args:
        backbone: Adapted or plain.
        path: The file, `*.ckpt`.
        model: Name of the timm model that the task will build; looked up if None.
        head: A linear classifier of the class token after the final norm.
        task: Meaning of the head's outputs, as TorchGeo's *task*.

    Returns:
        The name of the model, which the task needs.

    Raises:
        OSError: If the file cannot be written; an old file stays as it was.
        ValueError: If the task could not build the backbone by that name.
    """
    state = plain_state(backbone)
    name = stock_model(backbone, state, model)
    outputs: dict[str, Any] = {}
    if head is not None:
        state['head.weight'] = head.weight.detach().cpu().float().contiguous()
        state['head.bias'] = head.bias.detach().cpu().float().contiguous()
        # With `--ckpt_path`, Lightning's command reads the task from the file.
        outputs = {'_class_path': 'torchgeo.tasks.Classification', 'task': task}
        if task != 'binary':
            count = 'num_classes' if task == 'multiclass' else 'num_labels'
            outputs[count] = head.out_features
    _write(path, name, backbone.in_channels, to_torchgeo(state), outputs)
    return name


def export_torchgeo_segmentation(
    backbone: Backbone,
    path: str | os.PathLike[str],
    model: str | None = None,
    dates: int = 1,
) -> str:
    """Write a checkpoint for TorchGeo's tasks that have an encoder and a decoder.

    These are `SemanticSegmentation`, `PixelwiseRegression` and `ChangeDetection` of
    `torchgeo.tasks`, which load it as their *weights*. They can use a ViT only with
    *model* 'dpt', patches of 16 pixels and the model's own image size.

    Args:
        backbone: Adapted or plain.
        path: The file, `*.ckpt`.
        model: Name of the timm model that the task will build; looked up if None.
        dates: Images of a place that the task stacks into one: 2 for `ChangeDetection`,
            whose patch embedding then starts as the mean of both images' embeddings. It
            must be trained: with *freeze_backbone*, the order of the dates is lost.

    Returns:
        The *backbone* that the task needs: 'tu-' followed by the name of the model.

    Raises:
        OSError: If the file cannot be written; an old file stays as it was.
        ValueError: If the task could not build the backbone by that name.
    """
    state = plain_state(backbone)
    name = stock_model(backbone, state, model)
    # The encoder keeps timm's unused classifier, and is loaded strictly.
    for key, shape in _shapes(name, backbone.in_channels).items():
        if key.startswith('head.'):
            state[key] = torch.zeros(shape)
    kernel = state['patch_embed.proj.weight']
    state['patch_embed.proj.weight'] = kernel.repeat(1, dates, 1, 1) / dates
    # TorchGeo removes every 'model.' from a key, and the encoder needs one.
    named = to_torchgeo(state, prefix='modelmodel..')
    _write(path, name, dates * backbone.in_channels, named, {})
    return f'tu-{name}'


def stock_model(backbone: Backbone, state: State, model: str | None = None) -> str:
    """Return the name by which `timm.create_model` builds a model for the weights.

    Args:
        backbone: The backbone.
        state: Its weights under timm's names.
        model: The only name to try; if None, the backbone's own and those of this
            package.

    Raises:
        ValueError: If no model has these names and shapes.
    """
    found = {name: tensor.shape for name, tensor in state.items()}
    ours = names_of(backbone.embed_dim, len(backbone.blocks))
    names = [model] if model else [backbone.arguments.get('model'), *ours]
    candidates = [name for name in names if name is not None and timm.is_model(name)]
    channels = backbone.in_channels
    for name in candidates:
        try:
            expected = _shapes(name, channels)
        except ValueError:  # a model of this package with a fixed number of channels
            continue
        if found == {k: v for k, v in expected.items() if not k.startswith('head.')}:
            return name
    height, width = backbone.image_size
    tried = ', '.join(candidates) or f'none for {type(backbone).__name__}'
    raise ValueError(
        f'no model that timm builds by name ({tried}) has'
        f' these weights at {height} x {width} pixels: build the backbone at the'
        " model's default size, or register its architecture with timm and pass the"
        ' name as *model*'
    )


def _shapes(model: str, channels: int) -> dict[str, Size]:
    """Return names and shapes of a timm model, with its head, as a task builds it."""
    with torch.device('meta'):
        built: Any = timm.create_model(model, in_chans=channels)
    names = getattr(built, 'canonical_state_dict', built.state_dict)
    return {name: tensor.shape for name, tensor in names().items()}


def _write(
    path: str | os.PathLike[str],
    model: str,
    channels: int,
    state: State,
    outputs: Mapping[str, Any],
) -> None:
    checkpoint = {
        # Only plain values, so that it loads with `weights_only=True`.
        'hyper_parameters': {'model': model, 'in_channels': channels, **outputs},
        'state_dict': state,
        # Lightning expects these in a checkpoint.
        'pytorch-lightning_version': lightning.__version__,
        'epoch': 0,
        'global_step': 0,
        'torchgeo_explora': __version__,
    }
    with replacing(path) as part:
        torch.save(checkpoint, part)
