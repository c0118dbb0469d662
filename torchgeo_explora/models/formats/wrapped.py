"""Backbones inside the checkpoints of TorchGeo and lightly-train."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from torchgeo_explora.models.formats.names import State, is_rest, unwrapped
from torchgeo_explora.models.formats.published import from_dinov2, from_timm, to_timm

# Prefixes of the backbone in tasks; a longer prefix comes before one that it contains.
_TORCHGEO = (
    'model.backbone.model.',  # BYOL: the online network
    'model.encoder.model.',  # SemanticSegmentation with a timm encoder
    'modelmodel..',  # our own export for that task
    'backbone.vit.',  # MAE
    'backbone.',  # MoCo, SimCLR: the query network
    'model.',  # Classification, Regression
)
_LIGHTLY = (
    'teacher_embedding_model_wrapper._model.',  # DINOv2
    'teacher_embedding_model.wrapped_model._model.',  # DINO
    'embedding_model.wrapped_model._model.',  # SimCLR, distillation
    'wrapped_model._model.',  # an exported embedding model
    'student_embedding_model_wrapper._model.',
    'student_embedding_model.wrapped_model._model.',
)
# Prefixes that `from_dinov2` removes itself.
_DINOV2 = ('teacher.backbone.', 'student.backbone.', 'backbone.')
_EMBEDDING = re.compile(r'(.*?)patch_embed\.(?:\d+\.)?proj\.weight')
# Names of an averaged copy of a model.
_TEACHER = re.compile(r'(?:^|[._])(?:teacher|ema|momentum|target)(?:[._]|$)')


def from_torchgeo(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a checkpoint of a TorchGeo task whose model is a timm ViT.

    The task can be Classification, Regression, SemanticSegmentation, BYOL (online
    network), MoCo and SimCLR (query network) or MAE.

    Args:
        state: Content of the file, with the tensors under 'state_dict'.

    Returns:
        The backbone's tensors in timm's names, and the rest: a classifier or mask token
        under its own name, everything else under its full name.

    Raises:
        ValueError: If there is no backbone in it.
    """
    inner, outer = _inside(state, _TORCHGEO, 'a TorchGeo task')
    backbone, rest = from_timm(inner)
    return backbone, rest | outer


def to_torchgeo(
    backbone: Mapping[str, Tensor],
    rest: Mapping[str, Tensor] | None = None,
    prefix: str = 'model.',
) -> State:
    """Return the 'state_dict' of a TorchGeo task; this undoes `from_torchgeo`.

    Args:
        backbone: The backbone's tensors in timm's names.
        rest: The rest that `from_torchgeo` returned.
        prefix: Prefix of the task's backbone, such as 'model.' (Classification),
            'backbone.' (MoCo, SimCLR) or 'model.backbone.model.' (BYOL).
    """
    state = {f'{prefix}{key}': value for key, value in to_timm(backbone).items()}
    for key, value in (rest or {}).items():
        state[f'{prefix}{key}' if is_rest(key) else key] = value
    return state


def from_lightly_train(state: Mapping[str, Any]) -> tuple[State, State]:
    """Convert a state dict of lightly-train with a timm or DINOv2 ViT.

    Training states and exported embedding models wrap the backbone; other exported
    models are plain and do not need this function. A teacher is preferred to a student.

    Args:
        state: The tensors, or a dict with the tensors under 'state_dict'.

    Returns:
        The backbone's tensors in timm's names, and the rest: mask token and heads of
        the model under their own names, everything else under its full name.

    Raises:
        ValueError: If there is no backbone in it.
    """
    inner, outer = _inside(state, _LIGHTLY, 'lightly-train')
    backbone, rest = from_dinov2(inner)
    return backbone, rest | outer


def unwrapped_backbone(state: Mapping[str, Any]) -> tuple[State, State]:
    """Return a backbone that a library or a training script wrapped, and the rest.

    A state without a wrapped backbone is returned unchanged.

    Raises:
        ValueError: If it holds several backbones, and nothing says which to take.
    """
    known: tuple[str, ...] = _LIGHTLY + _TORCHGEO
    if _prefix(state, known) is None:
        prefix = _unknown_prefix(state)
        if prefix is None or prefix in _DINOV2:
            return dict(state), {}
        known = (prefix,)
    return _inside(state, known, 'a training script')


def _unknown_prefix(state: Mapping[str, Any]) -> str | None:
    """Return the prefix of the only ViT, or of a teacher."""
    found = filter(None, map(_EMBEDDING.fullmatch, state))
    prefixes = list(dict.fromkeys(match[1] for match in found))
    if not prefixes or '' in prefixes:
        return None
    teachers = [prefix for prefix in prefixes if _TEACHER.search(prefix)]
    if len(prefixes) == 2 and len(teachers) == 1:
        # In a distillation, the student is a different model.
        one, two = (_shapes(state, prefix) for prefix in prefixes)
        if one == two:
            return teachers[0]
    if len(prefixes) > 1:
        raise ValueError(
            f'the weights hold several ViTs ({", ".join(prefixes)}), and nothing says'
            ' which is meant: save the state dict of one of them'
        )
    return prefixes[0]


def _shapes(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return names and shapes of the embedding, blocks and norm under a prefix."""
    parts = tuple(f'{prefix}{part}' for part in ('patch_embed.', 'blocks.', 'norm.'))
    return {
        key.removeprefix(prefix): value.shape
        for key, value in state.items()
        if key.startswith(parts)
    }


def _prefix(state: Mapping[str, Any], prefixes: Sequence[str]) -> str | None:
    for prefix in prefixes:
        # A prefix may fit other modules, too, but only a ViT embeds patches.
        if any(key.startswith(f'{prefix}patch_embed.') for key in state):
            return prefix
    return None


def _inside(
    state: Mapping[str, Any], prefixes: Sequence[str], library: str
) -> tuple[State, State]:
    flat = unwrapped(state)
    prefix = _prefix(flat, prefixes)
    if prefix is None:
        raise ValueError(
            f'no ViT was found in this checkpoint of {library}: expected a key such as'
            f' {prefixes[-1]}patch_embed.proj.weight, found {[*flat][:3]}'
        )
    inner = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
    outer = {k: v for k, v in flat.items() if not k.startswith(prefix)}
    return inner, outer
