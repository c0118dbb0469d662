"""Whole backbones as folders of Hugging Face transformers."""

import os
from typing import Any

import torch
from timm.layers.mlp import SwiGLU
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from torchgeo_explora.adapt import merged
from torchgeo_explora.models import Backbone, RotaryViT, ViT
from torchgeo_explora.models.formats.dinov3 import to_transformers_dinov3
from torchgeo_explora.models.formats.transformers import to_transformers
from torchgeo_explora.writing import filling


def export_transformers(backbone: Backbone, folder: str | os.PathLike[str]) -> None:
    """Write a folder that `transformers.AutoModel.from_pretrained` loads.

    It holds a Dinov2Model if the backbone has LayerScale (a Dinov2WithRegistersModel
    with registers), a DINOv3ViTModel for a `RotaryViT`, otherwise a ViTModel, and an
    image processor with the base's mean and standard deviation. Features are the same
    at the backbone's image size; for other sizes transformers resizes position tables
    by its own rule. Rotary positions are the same at any size.

    Args:
        backbone: Adapted or plain.
        folder: Where `config.json` and the weights go.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        OSError: If the files cannot be written.
        ValueError: If transformers has no such model.
    """
    model = transformers_model(backbone)
    height, width = backbone.image_size
    from transformers import BitImageProcessor

    size = {'height': height, 'width': width}
    processor: Any = BitImageProcessor(
        size=size,
        crop_size=size,
        do_center_crop=False,
        image_mean=list(getattr(backbone, 'mean', ())),
        image_std=list(getattr(backbone, 'std', ())),
    )
    with filling(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)


def transformers_model(backbone: Backbone) -> Any:
    """Return the backbone as a model of transformers, delta merged.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        ValueError: If transformers has no such model.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "this export needs transformers: pip install 'torchgeo-explora[export]'"
        ) from error

    if isinstance(backbone, RotaryViT):
        return _loaded(transformers, 'DINOv3ViT', *_rotary(backbone))
    if not isinstance(backbone, ViT):
        raise ValueError(
            f'transformers has no model for a {type(backbone).__name__}: use'
            ' export_timm or export_onnx'
        )
    if backbone.image_size[0] != backbone.image_size[1]:
        raise ValueError(
            f'transformers takes only square position tables, but this one is for'
            f' {backbone.image_size}: build the backbone with a square image_size'
        )
    plain: Any = merged(backbone).cpu().eval()
    state = plain.canonical_state_dict()
    kind, options = _kind(state)
    # None of these has a default that fits every timm model.
    options |= {
        'hidden_size': plain.embed_dim,
        'num_hidden_layers': len(plain.blocks),
        'num_attention_heads': plain.blocks[0].attn.num_heads,
        'image_size': plain.image_size[0],
        'patch_size': plain.patch_size,
        'num_channels': plain.in_channels,
        'layer_norm_eps': plain.norm.eps,
        'qkv_bias': 'blocks.0.attn.qkv.bias' in state,
    }
    # Models with registers always have a mask token, which only training uses.
    rest = (
        {'mask_token': torch.zeros(1, plain.embed_dim)} if 'reg_token' in state else {}
    )
    return _loaded(transformers, kind, to_transformers(state, rest), options)


def _loaded(
    transformers: Any, kind: str, state: dict[str, Tensor], options: dict[str, Any]
) -> Any:
    """Return a model of transformers with the tensors of a file."""
    build = getattr(transformers, f'{kind}Model')
    extra = {'add_pooling_layer': False} if kind == 'ViT' else {}
    model, report = build.from_pretrained(
        None,
        config=getattr(transformers, f'{kind}Config')(**options),
        state_dict=state,
        output_loading_info=True,
        **extra,
    )
    if wrong := {name: keys for name, keys in report.items() if keys}:
        raise ValueError(f'transformers cannot hold these weights: {wrong}')
    return model.eval()


def _rotary(backbone: RotaryViT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a DINOv3ViTModel, and the options of its configuration."""
    plain: Any = merged(backbone).cpu().eval()
    block, rope = plain.blocks[0], plain.rope
    gated = isinstance(block.mlp, SwiGLU)
    parts = [plain.patch_embed.norm, plain.norm_pre, block.mlp.norm, block.attn.norm]
    parts += [block.attn.q_norm, block.attn.k_norm]
    if (
        not isinstance(rope, RotaryEmbeddingDinoV3)
        or not rope.rotate_half
        or rope.min_period is not None
        or (rope.normalize_coords, rope.grid_offset, rope.grid_indexing)
        != ('separate', 0, 'ij')
        or block.gamma_1 is None
        or any(not isinstance(part, nn.Identity) for part in parts)
        or not isinstance(block.mlp.act, nn.SiLU if gated else nn.GELU)
    ):
        raise ValueError(
            f'transformers has no model like {plain.arguments["model"]}: its'
            ' DINOv3ViTModel has the rotary positions, LayerScale and MLP of DINOv3;'
            ' use export_timm'
        )
    state = plain.canonical_state_dict()
    biased = 'blocks.0.attn.q_bias' in state
    return to_transformers_dinov3(state), {
        'hidden_size': plain.embed_dim,
        'intermediate_size': block.mlp.fc2.in_features,
        'num_hidden_layers': len(plain.blocks),
        'num_attention_heads': block.attn.num_heads,
        'num_register_tokens': plain.prefix().shape[1] - 1,
        'image_size': plain.image_size,
        'patch_size': plain.patch_size,
        'num_channels': plain.in_channels,
        'layer_norm_eps': plain.norm.eps,
        'rope_theta': rope.temperature,
        'use_gated_mlp': gated,
        'hidden_act': 'silu' if gated else 'gelu',
        'query_bias': biased,
        'key_bias': False,
        'value_bias': biased,
        'pos_embed_shift': rope.shift_coords,
        'pos_embed_jitter': rope.jitter_coords,
        'pos_embed_rescale': rope.rescale_coords,
    }


def _kind(state: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the kind of model and the options of its configuration."""
    fc1, fc2 = (state[f'blocks.0.mlp.{name}.weight'] for name in ('fc1', 'fc2'))
    width, hidden = fc2.shape
    if 'blocks.0.ls1.gamma' not in state:
        return 'ViT', {'intermediate_size': hidden}
    gated = len(fc1) == 2 * hidden
    options: dict[str, Any] = {
        'mlp_ratio': _mlp_ratio(width, hidden, gated),
        'use_swiglu_ffn': gated,
    }
    if 'reg_token' in state:
        options['num_register_tokens'] = state['reg_token'].shape[1]
        return 'Dinov2WithRegisters', options
    # The backbone has no mask token, and transformers would add a random one.
    return 'Dinov2', options | {'use_mask_token': False}


def _mlp_ratio(width: int, hidden: int, gated: bool) -> int:
    """Return the integer ratio from which transformers gets the hidden width."""
    for ratio in range(1, 17):
        # For SwiGLU it takes two thirds, rounded up to a multiple of 8.
        rounded = (int(width * ratio * 2 / 3) + 7) // 8 * 8
        if hidden == (rounded if gated else width * ratio):
            return ratio
    raise ValueError(
        f'transformers has no integer mlp_ratio that gives {hidden} for width {width},'
        ' so it cannot hold this backbone: use export_timm'
    )
