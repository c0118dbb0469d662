"""timm models that cannot be backbones here: why, and what to use instead."""

import re

import timm
import torch
from timm.layers.hybrid_embed import HybridEmbed
from torch import nn

# By class: why pre-training cannot use its tokens, and the nearest supported model of
# the same {size}.
_KINDS = {
    'Beit': (
        (
            'adds a bias for each pair of places to the attention, which no other image'
            ' size or subset of tokens has'
        ),
        'vit_{size}_patch16_224.mae',
    ),
    'SwinTransformer': (
        'attends within windows of a whole grid, of which no token can be left out',
        'vit_{size}_patch16_dinov3',
    ),
    'VisionTransformerSAM': (
        'attends within windows and has no class token',
        'vit_{size}_patch16_224.mae',
    ),
    'VisionTransformerDistilled': (
        'has a token for distillation in addition to the class token',
        'deit_{size}_patch16_224',
    ),
    'Eva': ('has positions of another kind', 'vit_{size}_patch16_dinov3'),
}
_HYBRID = (
    'makes its tokens by a convolutional network, which sees across patches',
    'vit_{size}_patch16_224',
)
_ANY = 'vit_{size}_patch14_dinov2'


def alternative(model: str, built: nn.Module) -> str:
    """Return why a timm model cannot be a backbone, and the nearest one that can.

    Args:
        model: Its name.
        built: The model.

    Returns:
        The end of a sentence.
    """
    kinds = [kind.__name__ for kind in type(built).__mro__]
    # SwinTransformerV2, SwinTransformerV2Cr: the same reason.
    kinds += ['SwinTransformer'] if kinds[0].startswith('SwinTransformer') else []
    found = next((_KINDS[kind] for kind in kinds if kind in _KINDS), None)
    if isinstance(getattr(built, 'patch_embed', None), HybridEmbed):
        found = _HYBRID
    reason, nearest = found or ('', _ANY)
    word = re.search(r'tiny|small|base|large', model)
    name = nearest.format(size=word[0] if word else 'base')
    if not timm.is_model_pretrained(name):
        name = nearest.format(size='base')
    return f'{f"it {reason}; " if reason else ""}the nearest supported model is {name}'


def alternative_to_unbuilt(model: str, taken: type[nn.Module]) -> str:
    """Return the same for a model that refused the arguments of a backbone.

    Args:
        model: Its name.
        taken: The supported class. If the model is of this class, the arguments are
            wrong, and '' is returned.

    Returns:
        '; ' and the end of a sentence, or ''.
    """
    with torch.device('meta'):
        built = timm.create_model(model, num_classes=0)
    if type(built) is taken:
        return ''
    return f'; it is a {type(built).__name__}; {alternative(model, built)}'
