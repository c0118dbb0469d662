"""Licences of published weights, as far as the weights' names reveal them."""

import re
from typing import Any, NamedTuple

import timm

from torchgeo_explora.models.formats.model_names import timm_name


class Terms(NamedTuple):
    """A licence that a publisher wrote for its own weights."""

    summary: str
    """In a few words; only the text of the licence counts."""
    page: str
    """Address of the text."""
    files: str
    """Address where the licence is accepted and the files are available."""


_META = 'https://ai.meta.com/resources/models-and-libraries'
#: Terms by the licence's name on the Hub and in timm.
TERMS = {
    'dinov3-license': Terms(
        "Meta's own terms; files are available on request, to those who accept them",
        f'{_META}/dinov3-license/',
        f'{_META}/dinov3-downloads/',
    ),
    'fair-noncommercial-research-license': Terms(
        "Meta's own terms for non-commercial research",
        'https://huggingface.co/facebook/fair-noncommercial-research-license',
        'https://huggingface.co/facebook',
    ),
}
# Weights that timm's names do not cover, by a part of their names.
_OTHERS = (
    (re.compile(r'(?i)dinov3'), 'dinov3-license'),
    (re.compile(r'(?i)facebook/eupe'), 'fair-noncommercial-research-license'),
)


def licence_of(weights: str) -> str | None:
    """Return the licence of weights, in the Hub's spelling; None if it is unknown.

    Args:
        weights: A timm model, a repository on the Hub, FAIR's name of a model, or the
            name of one of FAIR's files.
    """
    owner, _, name = weights.rpartition('/')
    known = timm_name(weights)
    if known is None and (owner == 'timm' or timm.is_model(weights)):
        known = name
    elif known is None and owner and timm.is_model(name):
        config = _config(name)
        known = name if config and config.hf_hub_id == weights else None
    config = _config(known) if known else None
    if config:
        licence: str | None = config.license
        return licence
    if re.search(r'\s', weights):  # a description, not a name
        return None
    return next((found for mark, found in _OTHERS if mark.search(weights)), None)


def _config(name: str) -> Any:
    """Return timm's configuration of a model's weights; None if it has none."""
    try:
        return timm.get_pretrained_cfg(name)
    # In a name such as vit_tiny_patch16_224.safetensors, the suffix looks like a tag.
    except RuntimeError:
        return None


def described(licence: str) -> str:
    """Return a licence in one line, with its terms if they are known."""
    terms = TERMS.get(licence)
    return f'{licence} ({terms.summary}: {terms.page})' if terms else licence


def is_noncommercial(licence: str) -> bool:
    """Return whether a licence, in the Hub's spelling, forbids commercial use."""
    return '-nc' in licence or 'noncommercial' in licence


def where_to_get(weights: str) -> str | None:
    """Return where to accept the licence and get the files; None if not needed.

    Args:
        weights: As for `licence_of`.
    """
    terms = TERMS.get(licence_of(weights) or '')
    if terms is None:
        return None
    return (
        f'their licence is {licence_of(weights)} ({terms.page}); accept it and get the'
        f' files at {terms.files}'
    )
